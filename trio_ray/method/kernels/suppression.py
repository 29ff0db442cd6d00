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
def _row(row, rank, window, place):
    """Similarities of the candidate at a rank to all others. Beyond the last rank they are those of the last one and
    have no effect, because no candidate of such a rank survives.
    """
    return tl.load(row + tl.minimum(rank, window - 1) * window + place, mask=place < window, other=float("-inf"))


@triton.jit
def _step(lives, survivors, likeness, rank, length, window, threshold, own, place):
    """If the candidate at a rank survives, it drops the later ones that are too similar to it."""
    survives = tl.sum(tl.where(place == rank, lives, 0))
    bound = threshold * tl.load(length + tl.minimum(rank, window - 1))
    alike = (likeness >= bound * own) & (place > rank)
    return tl.where(alike & (survives > 0), 0, lives), survivors + survives


@triton.jit
def _greedy(products, length, real, wanted, alive, threshold, window, SIZE: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    inside = place < window
    length += sample * window
    own = tl.load(length + place, mask=inside, other=0.0)
    lives = tl.load(real + sample * window + place, mask=inside, other=0).to(tl.int32)
    enough = tl.load(wanted + sample)
    row = products + sample * window * window
    first, second = _row(row, 0, window, place), _row(row, 1, window, place)
    third, fourth = _row(row, 2, window, place), _row(row, 3, window, place)
    rank = 0
    survivors = 0
    while (rank < window) & (survivors < enough):
        # The next four rows are on their way while these are worked on: which they are does not depend on who survives,
        # and one alone would take longer to come than its predecessor to be done with.
        after_first, after_second = _row(row, rank + 4, window, place), _row(row, rank + 5, window, place)
        after_third, after_fourth = _row(row, rank + 6, window, place), _row(row, rank + 7, window, place)
        lives, survivors = _step(lives, survivors, first, rank, length, window, threshold, own, place)
        lives, survivors = _step(lives, survivors, second, rank + 1, length, window, threshold, own, place)
        lives, survivors = _step(lives, survivors, third, rank + 2, length, window, threshold, own, place)
        lives, survivors = _step(lives, survivors, fourth, rank + 3, length, window, threshold, own, place)
        first, second, third, fourth = after_first, after_second, after_third, after_fourth
        rank += 4
    tl.store(alive + sample * window + place, lives > 0, mask=inside)
