"""The kernel of suppression keeps what a plain greedy loop keeps; on a GPU, and in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.interpreter import INTERPRETED, by_kernels, on_devices
from tests.method.reference import greedy_suppression
from tests.method.test_suppression import FEATURES
from trio_ray.method import suppression
from trio_ray.method.suppression import Speculation, suppress


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [20] if INTERPRETED else [1, 20, 90, 150])
@pytest.mark.parametrize("name", FEATURES)
def test_survivors_equal_those_of_the_greedy_loop(
    name: str, keep: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_kernels(monkeypatch, suppression)
    torch.manual_seed(keep)
    features = [FEATURES[name]().to(dtype), torch.randn(37, FEATURES[name]().shape[1]).to(dtype)]
    score = torch.rand(2, 150)
    wanted = [keep, min(keep, 37)]
    real = torch.arange(150)[None] < torch.tensor([[150], [37]])
    slots = torch.where(real, torch.arange(150)[None] + torch.tensor([[0], [150]]), 0)
    arguments = (*(x.to(device) for x in (score, torch.cat(features), slots, real)), wanted, 0.8)
    for speculation in (None, Speculation(window=150)):
        chosen = suppress(*arguments, speculation)
        for sample, rows in enumerate(features):
            truth = greedy_suppression(score[sample, : len(rows)].tolist(), rows, wanted[sample], 0.8)
            assert chosen[sample].nonzero()[:, 0].tolist() == truth
        assert speculation is None or all(speculation.pending)
