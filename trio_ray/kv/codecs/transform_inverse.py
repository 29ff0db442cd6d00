"""From packed symbols back to keys and values: the inverse transform of the transform codec, in floats.

state = symbols @ matrix * scale + mean, and then keys are rotated to their positions
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.codecs.transform_basis import FOLD_BITS, ROTATION_BITS, STEP_BITS, Components
from trio_ray.kv.codecs.transform_integers import Chunk
from trio_ray.kv.target import RowTarget


@dataclass(frozen=True)
class GroupInverse:
    """The inverse transform of rows of one kind in one group of layers: C channels from R components.

    Attributes:
        counts: components in each band; R in all.
        layers: of the group.
        matrix: (R and up to 7 rows of 0, C): fp32, or fp16 where that is as exact as the states that come of it.
        scale: (C,) fp32.
        mean: (means, C) fp32.
    """

    counts: tuple[int, ...]
    layers: int
    matrix: Tensor
    scale: Tensor
    mean: Tensor

    @classmethod
    def of(cls, part: Components, exponent: Tensor, layers: int, dtype: torch.dtype) -> GroupInverse:
        """The least-squares inverse of the integers of the forward transform, with a matrix of `dtype`."""
        forward = part.matrix.double()
        inverse = torch.linalg.solve(forward @ forward.T, forward)
        size = 2.0**STEP_BITS / part.multiplier.double()
        matrix = F.pad((inverse * size[:, None]).to(dtype), (0, 0, 0, -len(forward) % 8))
        scale = torch.ldexp(part.fold.double(), exponent.int() - FOLD_BITS).reciprocal().float()
        return cls(part.counts, layers, matrix, scale, part.mean)

    def products(self, symbols: Tensor) -> Tensor:
        """(n, C) fp32 products of (n, R) int16 symbols and the matrix."""
        return F.pad(symbols, (0, len(self.matrix) - symbols.shape[1])).to(self.matrix.dtype) @ self.matrix


def put_rows(target: RowTarget, first_layer: int, chunk: Chunk, products: Tensor, inverse: GroupInverse) -> None:
    """Write a chunk's keys and values into their rows of a target, in the group's layers from `first_layer` on."""
    layers, rows = slice(first_layer, first_layer + inverse.layers), target.rows[chunk.index]
    size = (inverse.layers, 2, *target.keys.shape[2:])
    both = (products * inverse.scale + inverse.mean[chunk.mean]).unflatten(1, size).permute(1, 2, 0, 3, 4)
    low, high = both[:, 0].chunk(2, -1)
    cosine, sine = (table[:, None].float() * 2.0**-ROTATION_BITS for table in (chunk.cosine, chunk.sine))
    keys = torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)
    target.keys[layers].index_copy_(1, rows, keys.to(target.keys.dtype))
    target.values[layers].index_copy_(1, rows, both[:, 1].to(target.values.dtype))
