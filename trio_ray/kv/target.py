"""Where restore writes keys and values: rows of tensors that decoding reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.batch import SegmentShape


@dataclass(frozen=True)
class RowTarget:
    """Where restore writes the rows of B samples in one run of layers (a segment).

    Attributes:
        keys, values: (layers, R, kv_heads, head_dim) of any floating dtype, on the device, contiguous in the last two
            dimensions; R is any number of rows.
        starts: (B,) the first row of each sample, whose rows are consecutive.
    """

    keys: Tensor
    values: Tensor
    starts: tuple[int, ...]

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
        return cls(keys, values, tuple(accumulate(lengths, initial=0))[:-1])

    @property
    def device(self) -> torch.device:
        """That it is on."""
        return self.keys.device

    def rows(self, shapes: Sequence[SegmentShape]) -> NDArray[np.int64]:
        """(T,) the row of keys and values that each row of the samples goes to, one sample behind the other.

        Args:
            shapes: of the samples.
        """
        lengths = np.array([shape.rows for shape in shapes], np.int64)
        ahead = lengths.cumsum() - lengths
        return (np.array(self.starts, np.int64) - ahead).repeat(lengths) + np.arange(lengths.sum())


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
