"""The greedy loop of suppression as one kernel: a program a sample, from similarities to survivors.

Imported only where there is a GPU and Triton.
"""

# ruff: noqa: N803 - constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def,import-not-found,import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def first_survivors(products: Tensor, length: Tensor, real: Tensor, wanted: Tensor, threshold: float) -> Tensor:
    """(b, W) bool, who survives, up to the `wanted`th survivor of each sample; behind it nobody was looked at.

    Args:
        products: (b, W, W) fp32 scalar products of the candidates in rank order.
        length: (b, W) fp32, their lengths.
        real: (b, W) bool.
        wanted: (b, 1) int64.
        threshold: of the cosine.
    """
    samples, window = length.shape
    alive = torch.empty(length.shape, dtype=torch.bool, device=length.device)
    size = triton.next_power_of_2(window)
    with torch.cuda.device_of(products):
        _greedy[(samples,)](
            products, length.contiguous(), real.contiguous(), wanted, alive, threshold, window,
            SIZE=size, num_warps=max(1, min(8, size // 512)),
        )  # fmt: skip
    return alive


@triton.jit
def _greedy(products, length, real, wanted, alive, threshold, window, SIZE: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    inside = place < window
    own = tl.load(length + sample * window + place, mask=inside, other=0.0)
    lives = tl.load(real + sample * window + place, mask=inside, other=0).to(tl.int32)
    enough = tl.load(wanted + sample)
    row = products + sample * window * window
    likeness = tl.load(row + place, mask=inside, other=0.0)
    rank = 0
    survivors = 0
    while (rank < window) & (survivors < enough):
        # The next row is on its way while this one is worked on: which it is does not depend on who survives.
        following = tl.load(row + (rank + 1) * window + place, mask=inside & (rank + 1 < window), other=0.0)
        this = place == rank
        survives = tl.sum(tl.where(this, lives, 0))
        bound = threshold * tl.load(length + sample * window + rank)
        alike = (likeness >= bound * own) & (place > rank)
        lives = tl.where(alike & (survives > 0), 0, lives)
        survivors += survives
        likeness = following
        rank += 1
    tl.store(alive + sample * window + place, lives > 0, mask=inside)
