"""The attention kernels read each sequence's two ranges of the pool, at any lengths and any number of splits."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import INTERPRETED, on_devices
from tests.model.decode.layouts import Layout
from trio_ray.model.decode.attention import PaddedAttention

pytest.importorskip("triton")
from trio_ray.model.decode.kernels.attention import attend

DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]


@on_devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "splits"), [(4, 2, 16, 2), (3, 3, 32, 1), (3, 3, 32, 4), (7, 1, 24, 4)]
)
def test_new_rows_see_what_they_see_in_plain_torch(
    device: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, splits: int
) -> None:
    """Long and empty prefixes, one new row and many; the last split takes what is beyond all chunks."""
    for counts, tile in (([1, 1, 1, 1], 1), ([3, 1, 9, 5], 4)):
        layout = Layout.make([70, 5, 200, 0], [3, 0, 70, 0], counts, kv_heads, dim, torch.device(device), dtype)
        rows = layout.new_rows(tile)
        query = torch.randn((sum(counts), heads, dim), device=device).to(dtype)
        ours = attend(query, layout.keys, layout.values, rows, layout.extents, 0.3, 64, splits)
        padded = PaddedAttention(rows, layout.extents)
        truth = padded.attend(query.float(), layout.keys.float(), layout.values.float(), 0.3)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours.float(), truth, atol=tolerance, rtol=tolerance)
