"""On a GPU kernels of our own do what torch does on the CPU: the same survivors, the same saliency."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from tests.method.reference import greedy_suppression
from tests.method.test_saliency import prompt, relative_error
from tests.method.test_suppression import FEATURES
from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.saliency import proxy_saliency
from trio_ray.method.suppression import Haste, suppress

pytestmark = pytest.mark.gpu

PROMPTS = [prompt(3, 200, 30), prompt(2, 33, 25), prompt(0, 64, 22), prompt(5, 3, 40)]
"""Of very different length, and with text enough behind the image for all supervised rows."""

WIDTH, VOCABULARY = 96, 50


def on_gpu(proxy: ProxyLayer, dtype: torch.dtype) -> ProxyLayer:
    """The same there, in another dtype."""
    values = {field.name: getattr(proxy, field.name) for field in fields(proxy)}
    tensors = {name: value.to("cuda", dtype) for name, value in values.items() if isinstance(value, Tensor)}
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


@pytest.mark.parametrize("supervised", [(-1,), (-5, -4, -3, -2), tuple(range(-20, 0)), (-35, -2)])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(4, 64), (2, 32), (1, 128), (2, 24)])
@torch.no_grad()
def test_saliency_equals_the_cpus(kv_heads: int, head_dim: int, supervised: tuple[int, ...]) -> None:
    """Heads and numbers of queries that the kernels take, others that they leave to torch, and supervised image rows,
    whose queries matter as well.
    """
    rows = PackedRows.pack(PROMPTS, "cpu")
    proxy = random_proxy(rows, kv_heads, head_dim)
    hidden = torch.randn(rows.total, WIDTH)
    truth = proxy_saliency(hidden, rows, proxy, supervised)
    there = PackedRows.pack(PROMPTS, "cuda")
    ours = proxy_saliency(hidden.cuda(), there, on_gpu(proxy, torch.float32), supervised).cpu()
    assert relative_error(ours[rows.is_image], truth[rows.is_image]) < 1e-3
    half = proxy_saliency(hidden.cuda().bfloat16(), there, on_gpu(proxy, torch.bfloat16), supervised).cpu()
    assert torch.corrcoef(torch.stack([half[rows.is_image], truth[rows.is_image]]))[0, 1] > 0.99


def test_the_kernels_take_the_heads_of_the_models_that_matter() -> None:
    """Vicuna and Mistral at 7B, with all rows that trio-plus supervises; else nothing above would have tested them."""
    from trio_ray.method import supervision_kernels

    assert supervision_kernels.fit(5, 128)
    assert supervision_kernels.fit(4 * 5, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [1, 20, 90, 150])
@pytest.mark.parametrize("name", FEATURES)
def test_survivors_equal_those_of_the_greedy_loop(name: str, keep: int, dtype: torch.dtype) -> None:
    torch.manual_seed(keep)
    features = [FEATURES[name]().to(dtype), torch.randn(37, FEATURES[name]().shape[1]).to(dtype)]
    score = torch.rand(2, 150)
    wanted = [keep, min(keep, 37)]
    real = torch.arange(150)[None] < torch.tensor([[150], [37]])
    slots = torch.where(real, torch.arange(150)[None] + torch.tensor([[0], [150]]), 0)
    arguments = (score.cuda(), torch.cat(features).cuda(), slots.cuda(), real.cuda(), wanted, 0.8)
    for haste in (None, Haste(window=150)):
        chosen = suppress(*arguments, haste)
        for sample, rows in enumerate(features):
            truth = greedy_suppression(score[sample, : len(rows)].tolist(), rows, wanted[sample], 0.8)
            assert chosen[sample].nonzero()[:, 0].tolist() == truth
        assert haste is None or all(haste.unchecked)
