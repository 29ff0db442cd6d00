"""Where restore writes keys and values: rows of tensors that decoding reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.batch import SegmentShape
from trio_ray.tensors import to_device


@dataclass(frozen=True)
class RowTarget:
    """Where restore writes the rows of B samples in one run of layers (a segment).

    Attributes:
        keys, values: (layers, R, kv_heads, head_dim) of any floating dtype, on the device, contiguous in the last two
            dimensions; R is any number of rows.
        rows: (T,) int64 on the device, the row of keys and values that each packed row goes to; the samples lie one
            behind the other.
        starts: (B,) on the host, the first row of each sample, whose rows are consecutive.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    starts: tuple[int, ...]

    @classmethod
    def at(cls, keys: Tensor, values: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> RowTarget:
        """The target of samples that begin at these rows and have so many of them. Does not wait for the device.

        Args:
            keys, values: see `RowTarget`.
            starts, lengths: (B,) of the samples.
        """
        rows = np.concatenate([np.arange(0)] + [np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
        return cls(keys, values, to_device(torch.from_numpy(rows), keys.device), tuple(starts))

    @classmethod
    def fresh(cls, shapes: Sequence[SegmentShape], device: torch.device) -> RowTarget:
        """New tensors for samples of these shapes, which lie one behind the other. Their contents are undefined.

        Args:
            shapes: of one run of layers; they differ in rows, images and lead alone.
            device: where the tensors are made.
        """
        lengths = [shape.rows for shape in shapes]
        layers, _, heads, dim = shapes[0].size
        size = (layers, sum(lengths), heads, dim)
        keys, values = (torch.empty(size, dtype=shapes[0].dtype, device=device) for _ in range(2))
        starts = tuple(accumulate(lengths, initial=0))[:-1]
        return cls(keys, values, torch.arange(sum(lengths), device=device), starts)


Allocate = Callable[[Sequence[Sequence[tuple[SegmentShape, ...]]]], Sequence[Sequence[RowTarget]]]
"""Takes the shapes of the segments of every sample of a call (outermost: kinds of samples, whose segments hold the same
layers; then samples; then segments) and returns for each kind a target for each segment. The dtype of a target may
differ from the stored one; restore then converts."""


class TargetsInUse(TrioRayError):
    """An `Allocate` has no room as long as its caller keeps what it restored before from being used."""


def fresh_targets(device: torch.device) -> Allocate:
    """An `Allocate` that makes new packed tensors on a device for every call."""

    def allocate(kinds: Sequence[Sequence[tuple[SegmentShape, ...]]]) -> list[list[RowTarget]]:
        return [[RowTarget.fresh(own, device) for own in zip(*shapes, strict=True)] for shapes in kinds]

    return allocate
