"""The kernels between a layer's matrix products compute what the plain functions do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.interpreter import HALF, on_devices
from tests.model.decode.layouts import Layout
from trio_ray.method.proxy import rms_norm, rotate
from trio_ray.model.decode.attention import PaddedAttention

pytest.importorskip("triton")
from trio_ray.model.decode.kernels.layer import add_and_norm, rotate_and_store, silu_product

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)


@on_devices
@both_dtypes
def test_the_sum_is_kept_and_normed(device: str, dtype: torch.dtype) -> None:
    hidden, update, weight = (torch.randn(size, device=device).to(dtype) for size in ((3, 200), (3, 200), (200,)))
    total = hidden + update
    for change in (update, None):
        out = add_and_norm(hidden, change, weight, 1e-5)
        torch.testing.assert_close(hidden, total)
        torch.testing.assert_close(out, rms_norm(total, weight, 1e-5), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@on_devices
@both_dtypes
def test_gates_open(device: str, dtype: torch.dtype) -> None:
    gate_up = torch.randn((3, 2 * 1100), device=device).to(dtype)
    gate, up = gate_up.chunk(2, 1)
    torch.testing.assert_close(silu_product(gate_up), F.silu(gate) * up, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@on_devices
@both_dtypes
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (7, 1, 24)])
def test_queries_and_keys_are_rotated_and_new_rows_stand_behind_their_sequences(
    device: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> None:
    counts = [3, 1, 9]
    layout = Layout.make([20, 5, 0], [3, 0, 2], counts, kv_heads, dim, torch.device(device), dtype)
    rows = layout.new_rows(4)
    projected = torch.randn((sum(counts), (heads + 2 * kv_heads) * dim), device=device).to(dtype)
    angle = torch.randn((200, dim // 2), device=device).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    position = layout.table.positions(rows)
    query, key, value = projected.unflatten(1, (-1, dim)).split([heads, kv_heads, kv_heads], 1)
    keys, values = layout.keys.clone(), layout.values.clone()
    at = position.long()
    PaddedAttention(rows, layout.extents).store(keys, values, rotate(key, cos[at], sin[at]), value)
    ours = rotate_and_store(projected, (cos, sin), position, layout.keys, layout.values, rows, layout.extents)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(ours, rotate(query, cos[at], sin[at]), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(layout.keys, keys, atol=tolerance, rtol=tolerance)
    assert torch.equal(layout.values, values)
