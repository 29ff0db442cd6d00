"""Many host tensors to a device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNMENT = 256
"""Bytes; where each tensor begins, so that a kernel reads it as it reads one of its own."""


def move_joined(runs: Sequence[Sequence[Tensor]], device: torch.device) -> list[Tensor]:
    """Each run of host tensors as one, joined along the first dimension, on the device.

    To a GPU they go through one block of pinned memory in a single copy, which nothing waits for. The tensors of a run
    have one dtype, and equal sizes but for the first.
    """
    if device.type == "cpu":
        return [run[0] if len(run) == 1 else torch.cat(list(run)) for run in runs]
    sizes = [sum(tensor.numel() * tensor.element_size() for tensor in run) for run in runs]
    starts = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    block = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for run, start, size in zip(runs, starts, sizes, strict=False):
        torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in run], out=block[start : start + size])
    moved = block.to(device, non_blocking=True)
    return [
        moved[start : start + size].view(run[0].dtype).view(sum(map(len, run)), *run[0].shape[1:])
        for run, start, size in zip(runs, starts, sizes, strict=False)
    ]


def move_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Host tensors on the device, see `move_joined`."""
    return move_joined([[tensor] for tensor in tensors], device)
