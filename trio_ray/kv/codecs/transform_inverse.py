"""From packed symbols back to keys and values: the inverse transform of the transform codec, in floats.

state = symbols @ matrix * scale + mean, and then keys are rotated to their positions
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.codecs.transform_bands import (
    BANDS,
    ZERO,
    digit_places,
    narrow_digits,
    unpack_narrow,
    unpack_wide,
)
from trio_ray.kv.codecs.transform_basis import FOLD_BITS, ROTATION_BITS, STEP_BITS, Components
from trio_ray.kv.codecs.transform_integers import Chunk
from trio_ray.kv.target import RowTarget

FINE, COARSE = 127 * 256 + 127, 127
"""The largest integer of a matrix in two bytes a number, and of one in the upper byte alone."""
RESTORED_ROWS = 256
"""Rows at least that a CPU restores at once, for a product first arranges its matrix."""


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
        symbols = torch.cat([unpack_wide(packed[0]), unpack_narrow(packed[1:], self.counts[1:]).float() - ZERO], 1)
        products = F.pad(symbols, (0, len(self.matrix) - symbols.shape[1])).to(self.matrix.dtype) @ self.matrix
        return torch.addcmul(_mean_rows(self.mean, mean), products, self.scale)


@dataclass(frozen=True)
class ByteInverse:
    """A `GroupInverse` in 8-bit products, of which a CPU does four in the time of one of fp32.

    The matrix is rounded to integers of 16 bits in the band `byte`, and of 8 bits in `nibble` and `trit`, whose symbols
    are so small that this makes an error of a twentieth of the one that rounding them to whole steps has made before,
    or less. The few wide symbols are multiplied in fp32. Scale, mean and sum belong to the products, so no float is
    written twice.

    The products take the digits of `narrow_digits`, none of which is below 0; what their symbols are smaller is part of
    what is added to each sum.

    Attributes:
        counts: components in each band.
        wide: (wide components, C) fp32, what they count in a state.
        high: of the other components, what the integers hold of 256; None where there are no others.
        low: of the components of the band `byte`, the rest of theirs; None likewise.
        bias: (C,) fp32, the first mean row, less what the digits are too large.
        others: (means, C) fp32, what each mean row differs from the first one.
    """

    counts: tuple[int, ...]
    wide: Tensor
    high: ByteMatrix | None
    low: ByteMatrix | None
    bias: Tensor
    others: Tensor

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
        coarse_whole = (coarse / (256 * unit)).round().clamp(-COARSE, COARSE).int()
        scale = inverse.scale * unit
        limits = whole.new_tensor([band.limit for band in BANDS[1:]]).repeat_interleave(
            torch.tensor(inverse.counts[1:])
        )
        above = limits.double() @ torch.cat([whole, 256 * coarse_whole]).double() * scale.double()
        return cls(
            counts=inverse.counts,
            wide=wide * inverse.scale,
            high=ByteMatrix.of(_by_digits(torch.cat([high, coarse_whole]), inverse.counts[1:]), 256 * scale),
            low=ByteMatrix.of(whole - (high << 8), scale),
            bias=(inverse.mean[0].double() - above).float(),
            others=inverse.mean - inverse.mean[0],
        )

    def states(self, packed: Sequence[Tensor], mean: Tensor) -> Tensor:
        """See `GroupInverse`."""
        if self.high is None:
            states = self.bias.repeat(len(mean), 1)
        else:
            digits = np.concatenate(narrow_digits(packed[1:]), 1)
            states = self.high.multiply(torch.from_numpy(digits), self.bias)
        if self.low is not None:
            self.low.add_to(states, packed[1].contiguous())
        if self.counts[0]:
            states.addmm_(unpack_wide(packed[0]), self.wide)
        if len(self.others) > 1:
            rows = mean.nonzero()[:, 0]  # few: the text rows ahead of the image
            states.index_add_(0, rows, self.others[mean[rows]])
        return states


def _by_digits(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """(R, C), a row for each component of the narrow bands -> a row for each number in a row of `narrow_digits`."""
    places = digit_places(counts)
    return torch.cat([F.pad(rows[list(numbers)], (0, 0, 0, width - len(numbers))) for numbers, width in places])


@dataclass(frozen=True)
class ByteMatrix:
    """(R, C) integers of 8 bits as oneDNN keeps them for products, which scale each of the C sums.

    Attributes:
        packed: the matrix.
        scale: (C,) fp32.
        zeros: (C,) int64 of 0, which oneDNN asks for.
    """

    packed: Tensor
    scale: Tensor
    zeros: Tensor

    @classmethod
    def of(cls, whole: Tensor, scale: Tensor) -> ByteMatrix | None:
        """Of (R, C) integers of up to 127 either way, and (C,); None where R is 0, of which oneDNN has no products."""
        if not len(whole):
            return None
        packed = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8).T.contiguous(), [RESTORED_ROWS, len(whole)])
        return cls(packed, scale.contiguous(), torch.zeros(len(scale), dtype=torch.int64))

    def multiply(self, digits: Tensor, bias: Tensor) -> Tensor:
        """(n, C) fp32 `digits @ matrix * scale + bias` of (n, R) uint8."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            digits, 1.0, 0, self.packed, self.scale, self.zeros, bias, 1.0, 0, torch.float32, "none", [], ""
        )
        return product

    def add_to(self, states: Tensor, digits: Tensor) -> None:
        """Add `digits @ matrix * scale` to (n, C) fp32."""
        torch.ops.onednn.qlinear_pointwise.binary(
            digits, 1.0, 0, self.packed, self.scale, self.zeros, states, None, 1.0, 0, torch.float32, 1.0, 0,
            "sum", 1.0, "none", [], "",
        )  # fmt: skip


@functools.cache
def has_exact_bytes() -> bool:
    """Whether this CPU and this torch have 8-bit products that are exact: those of some older CPUs saturate when two
    are added.
    """
    rows, columns = 64, 64
    matrix = torch.full((rows, columns), COARSE, dtype=torch.int32)
    digits = torch.tensor([[255], [0], [1]], dtype=torch.uint8).expand(-1, rows).contiguous()
    sums = digits[:, :1].int() * COARSE * rows
    try:
        product = ByteMatrix.of(matrix, torch.ones(columns))
        assert product is not None
        states = product.multiply(digits, torch.zeros(columns))
        product.add_to(states, digits)
    except (AttributeError, RuntimeError, TypeError):  # there are none
        return False
    return bool((states == 2 * sums).all())


@dataclass(frozen=True)
class Turn:
    """Where the n rows of a chunk are written, and how their keys are rotated.

    Attributes:
        runs: first row, row behind the last, and the row of the target that the first one goes to, of rows that lie one
            behind the other there. So they are converted and moved in one step.
        cosine, sine: (n, 1, 1, head_dim / 2) fp32.
    """

    runs: tuple[tuple[int, int, int], ...]
    cosine: Tensor
    sine: Tensor

    @classmethod
    def of(cls, chunk: Chunk, rows: Tensor) -> Turn:
        """Of a chunk's rows; row t of the segment goes to row `rows[t]` of the target."""
        cosine, sine = (table[:, None, None].float() * 2.0**-ROTATION_BITS for table in (chunk.cosine, chunk.sine))
        rows = rows[chunk.index]
        breaks = (1 + (rows.diff() != 1).nonzero()[:, 0]).tolist()
        starts = [0, *breaks]
        places = rows[starts].tolist()
        return cls(tuple(zip(starts, [*breaks, len(rows)], places, strict=True)), cosine, sine)


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
        for start, stop, place in turn.runs:
            out[part, place : place + stop - start].copy_(states_of[start:stop].transpose(0, 1))


def _mean_rows(means: Tensor, mean: Tensor) -> Tensor:
    """(n, C), or (1, C) where all rows have the one that there is."""
    return means if len(means) == 1 else means[mean]
