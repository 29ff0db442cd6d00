"""From packed symbols back to keys and values: the inverse transform of the transform codec, in floats.

state = symbols @ matrix * scale + mean, and then keys are rotated to their positions
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.codecs.transform_bands import unpack_narrow, unpack_wide
from trio_ray.kv.codecs.transform_basis import FOLD_BITS, ROTATION_BITS, STEP_BITS, Components
from trio_ray.kv.codecs.transform_integers import Chunk
from trio_ray.kv.target import RowTarget

FINE, COARSE = 127 * 256 + 127, 127
"""The largest integer of a matrix in two bytes a number, and of one in the upper byte alone."""


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

    def states(self, packed: Sequence[Tensor], mean: Tensor) -> Tensor:
        """(n, C) fp32 states, keys not yet rotated.

        Args:
            packed: the rows' symbols by band, see `transform_bands.pack`.
            mean: (n,) int64, which mean row is added to each.
        """
        symbols = torch.cat([unpack_wide(packed[0]), unpack_narrow(packed[1:], self.counts[1:]).float()], 1)
        products = F.pad(symbols, (0, len(self.matrix) - symbols.shape[1])).to(self.matrix.dtype) @ self.matrix
        return torch.addcmul(_mean_rows(self.mean, mean), products, self.scale)


@dataclass(frozen=True)
class ByteInverse:
    """A `GroupInverse` in 8-bit products, of which a CPU does five in the time of one of fp32.

    The matrix is rounded to integers of 16 bits in the band `byte`, and of 8 bits in `nibble` and `trit`, whose symbols
    are so small that this makes an error of a twentieth of the one that rounding them to whole steps has made before,
    or less. The few wide symbols are multiplied in fp32.

    Attributes:
        counts: components in each band.
        wide: (wide components, C) fp32.
        high: (other components, C) int8, what the integers hold of 256.
        low: (components of the band `byte`, C) int8, the rest of theirs.
        scale: (C,) fp32.
        mean: (means, C) fp32.
    """

    counts: tuple[int, ...]
    wide: Tensor
    high: Tensor
    low: Tensor
    scale: Tensor
    mean: Tensor

    @classmethod
    def of(cls, inverse: GroupInverse) -> ByteInverse:
        """The same transform on a CPU; `inverse` is of fp32."""
        wide, fine, coarse, _ = inverse.matrix.split(
            [inverse.counts[0], inverse.counts[1], sum(inverse.counts[2:]), len(inverse.matrix) - sum(inverse.counts)]
        )
        largest = torch.cat([fine, coarse, fine.new_zeros(1, fine.shape[1])]).abs().amax(0)
        unit = torch.where(largest > 0, largest, 1.0) / FINE
        whole = (fine / unit).round().int().clamp(-FINE, FINE)
        high = (whole + 128) >> 8
        return cls(
            counts=inverse.counts,
            wide=(wide / unit).contiguous(),
            high=torch.cat([high, (coarse / (256 * unit)).round().clamp(-COARSE, COARSE).int()]).to(torch.int8),
            low=(whole - (high << 8)).to(torch.int8),
            scale=inverse.scale * unit,
            mean=inverse.mean,
        )

    def states(self, packed: Sequence[Tensor], mean: Tensor) -> Tensor:
        """See `GroupInverse`."""
        symbols = unpack_narrow(packed[1:], self.counts[1:])
        states = torch._int_mm(symbols, self.high).float()
        if self.counts[1]:
            low = torch._int_mm(symbols[:, : self.counts[1]], self.low).float()
            torch.add(low, states, alpha=256, out=states)
        else:
            states *= 256
        if self.counts[0]:
            states.addmm_(unpack_wide(packed[0]), self.wide)
        return torch.addcmul(_mean_rows(self.mean, mean), states, self.scale, out=states)


@functools.cache
def has_exact_bytes() -> bool:
    """Whether this CPU's 8-bit products are exact: those of some older ones saturate when two are added."""
    if not hasattr(torch, "_int_mm"):
        return False
    row = torch.full((64, 64), -128, dtype=torch.int8)
    matrix = torch.full((64, 64), 127, dtype=torch.int8)
    try:
        return all(bool((torch._int_mm(own, matrix) == int(own[0, 0]) * 127 * 64).all()) for own in (row, ~row))
    except RuntimeError:  # there is none for this CPU
        return False


@dataclass(frozen=True)
class Turn:
    """Where the n rows of a chunk are written, and how their keys are rotated.

    Attributes:
        rows: (n,) int64, rows of a target.
        cosine, sine: (n, 1, 1, head_dim / 2) fp32.
    """

    rows: Tensor
    cosine: Tensor
    sine: Tensor

    @classmethod
    def of(cls, chunk: Chunk, target: RowTarget) -> Turn:
        """Of a chunk's rows."""
        cosine, sine = (table[:, None, None].float() * 2.0**-ROTATION_BITS for table in (chunk.cosine, chunk.sine))
        return cls(target.rows[chunk.index], cosine, sine)


def put_rows(target: RowTarget, first_layer: int, layers: int, turn: Turn, states: Tensor) -> None:
    """Write keys and values into their rows of a target.

    Args:
        target: takes them.
        first_layer, layers: of a group, in the target.
        turn: of n rows.
        states: (n, C) fp32, see `GroupInverse.states`.
    """
    part, (heads, dim) = slice(first_layer, first_layer + layers), target.keys.shape[2:]
    both = states.view(len(states), layers, 2, heads, dim)
    low, high = both[:, :, 0].chunk(2, -1)
    keys = torch.empty_like(both[:, :, 0], memory_format=torch.contiguous_format)
    for out, first, second, sign in ((keys[..., : dim // 2], low, high, -1), (keys[..., dim // 2 :], high, low, 1)):
        torch.mul(first, turn.cosine, out=out)
        out.addcmul_(second, turn.sine, value=sign)
    for out, states_of in ((target.keys, keys), (target.values, both[:, :, 1])):
        out[part].index_copy_(1, turn.rows, states_of.to(out.dtype).transpose(0, 1))


def _mean_rows(means: Tensor, mean: Tensor) -> Tensor:
    """(n, C), or (1, C) where all rows have the one that there is."""
    return means if len(means) == 1 else means[mean]
