"""The kernels between keys and queries give the saliency that torch gives; on a GPU, and in Triton's interpreter."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from tests.interpreter import HALF, by_kernels, on_devices
from tests.method.test_saliency import prompt, relative_error
from trio_ray.method import supervision
from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.saliency import proxy_saliency

PROMPTS = [prompt(3, 200, 30), prompt(2, 33, 25), prompt(0, 64, 22), prompt(5, 3, 40)]
"""Of very different length, and with text enough behind the image for all supervised rows."""

WIDTH, VOCABULARY = 96, 50


def moved(proxy: ProxyLayer, device: str, dtype: torch.dtype) -> ProxyLayer:
    """The same there, in another dtype."""
    values = {field.name: getattr(proxy, field.name) for field in fields(proxy)}
    tensors = {name: value.to(device, dtype) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(proxy, **tensors)


def random_proxy(rows: PackedRows, kv_heads: int, head_dim: int) -> ProxyLayer:
    torch.manual_seed(kv_heads)
    heads = 4
    angle = rows.position[:, None] * torch.logspace(0, -3, head_dim // 2).repeat(2)
    out, head = torch.randn(heads * head_dim, WIDTH) / 16, torch.randn(WIDTH, VOCABULARY) / 4

    def finish(states: Tensor, residual: Tensor) -> Tensor:
        return (residual + states @ out.to(states)) @ head.to(states)

    def weight(size: int) -> Tensor:
        return torch.randn(size * head_dim, WIDTH) * 0.15

    return ProxyLayer(
        norm_weight=1 + 0.1 * torch.randn(WIDTH), norm_eps=1e-5, q_weight=weight(heads), k_weight=weight(kv_heads),
        v_weight=weight(kv_heads), q_bias=None, k_bias=torch.randn(kv_heads * head_dim), v_bias=None,
        head_dim=head_dim, scaling=head_dim**-0.5, cos=angle.cos(), sin=angle.sin(), finish=finish,
    )  # fmt: skip


@on_devices
@pytest.mark.parametrize("supervised", [(-1,), (-5, -4, -3, -2), tuple(range(-20, 0)), (-35, -2)])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(4, 64), (2, 32), (1, 128), (2, 24)])
@torch.no_grad()
def test_saliency_equals_torchs(
    kv_heads: int, head_dim: int, supervised: tuple[int, ...], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads and numbers of queries that the kernels take, others that they leave to torch, and supervised image rows,
    whose queries matter as well.
    """
    rows = PackedRows.pack(PROMPTS, "cpu")
    proxy = random_proxy(rows, kv_heads, head_dim)
    hidden = torch.randn(rows.total, WIDTH)
    truth = proxy_saliency(hidden, rows, proxy, supervised)
    by_kernels(monkeypatch, supervision)
    there = PackedRows.pack(PROMPTS, device)
    for dtype in (torch.float32, HALF):
        found = proxy_saliency(hidden.to(device, dtype), there, moved(proxy, device, dtype), supervised).cpu()
        ours, wanted = found[rows.is_image], truth[rows.is_image]
        if dtype == torch.float32:
            assert relative_error(ours, wanted) < 1e-3
        else:
            assert torch.corrcoef(torch.stack([ours, wanted]))[0, 1] > 0.99


@on_devices
def test_the_kernels_take_the_heads_of_the_models_that_matter(device: str) -> None:
    """Vicuna and Mistral at 7B, with all rows that trio-plus supervises; else nothing above would have tested them."""
    from trio_ray.method.kernels import supervision as supervision_kernels

    for queries in (5, 4 * 5):
        assert supervision_kernels.fit(queries, 128)
