"""Keys and values to symbols in whole numbers alone, so that all machines make the same bytes of them.

x = round(value * 2 ** exponent)              16 bits; multiplying by a power of two is exact
keys: turned back by their position           16-bit tables, so sums of 31 bits
y = (x - center) * fold >> FOLD_BITS          16 bits
sum = matrix @ y                              below 2 ** 39, so exact in any order of adding
symbol = (|sum - offset| * multiplier + rounding) >> STEP_BITS, with its sign
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.codecs.transform_bands import PackedPlaces, pack
from trio_ray.kv.codecs.transform_basis import (
    FOLD_BITS,
    INPUT_LIMIT,
    ROTATION_BITS,
    STEP_BITS,
    Basis,
    Components,
    Group,
)
from trio_ray.tensors import fused

SUM_LIMIT = 1 << 38

LOW_BYTE = 128
"""Taken from a low byte, which has no sign, so that it is one of 8 bits with a sign."""

TILE_ROWS = 8
"""An 8-bit matrix product of a GPU wants multiples of this, and two tiles or more of the first factor."""


@dataclass(frozen=True)
class Chunk:
    """Rows of one kind in a segment that are coded or decoded together.

    Attributes:
        index: (n,) int64, where they are.
        mean: (n,) int64, which mean each differs from, see `Components.offset`.
        cosine, sine: (n, head_dim / 2) int16, what their keys are rotated by.
    """

    index: Tensor
    mean: Tensor
    cosine: Tensor
    sine: Tensor

    @classmethod
    def of(cls, basis: Basis, index: Tensor, mean: Tensor, position: Tensor) -> Chunk:
        """`position` (T,) int32 of all rows of the segment; beyond the tables it counts as their last."""
        place = position[index].long().clamp(0, len(basis.cosine) - 1)
        return cls(index, mean, basis.cosine[place], basis.sine[place])


@dataclass(frozen=True)
class TorchRowCoder:
    """From rows of one kind in a group's layers to stored bytes. `transform_kernels` has its match for a GPU.

    Attributes:
        group: on the device of the states.
        kind: of the rows, its number in `KINDS`.
        rounding: of the basis.
    """

    group: Group
    kind: int
    rounding: int

    def put(self, keys: Tensor, values: Tensor, chunk: Chunk, places: PackedPlaces) -> None:
        """Code rows and store them.

        Args:
            keys, values: (layers, T, kv_heads, head_dim) of the group's layers, keys rotated.
            chunk: which n of the T rows.
            places: of n rows.
        """
        part = self.group.kinds[self.kind]
        rows = whole_rows(self.group.exponent, keys, values, chunk)
        places.put(pack(symbols(rows, part, chunk.mean, self.rounding), part.counts))


def whole_rows(exponent: Tensor, keys: Tensor, values: Tensor, chunk: Chunk) -> Tensor:
    """(n, C) int32, the integers x above, keys turned back.

    Args:
        exponent: (C,) int8 of the layers that these are, `Group.exponent`.
        keys, values: (layers, T, kv_heads, head_dim), keys rotated.
        chunk: which of the T rows.
    """
    return _whole_rows(keys, values, chunk.index, chunk.cosine, chunk.sine, exponent)


def symbols(rows: Tensor, part: Components, mean: Tensor, rounding: int) -> Tensor:
    """(n, R) int64 symbols of (n, C) int32 `whole_rows`; `mean` (n,) int64 numbers the mean row of each."""
    sums = sums_of_products(folded(rows, part.center, part.fold), part.matrix)
    return _quantise(sums, part.offset[mean], part.multiplier, rounding)


def sums_of_products(rows: Tensor, matrix: Tensor) -> Tensor:
    """(n, R) int64 `rows @ matrix.T`, exact: (n, C) int32 of 16 bits, (R, C) int8."""
    if rows.is_cuda:
        return sums_by_bytes(rows, matrix)
    return (rows.double() @ matrix.double().T).long()


def sums_by_bytes(rows: Tensor, matrix: Tensor) -> Tensor:
    """The same by an 8-bit matrix product with 32-bit sums, which a GPU has units for."""
    planes = torch.cat([(rows >> 8).to(torch.int8), ((rows & 255) - LOW_BYTE).to(torch.int8)])
    both, tiles = _whole_tiles(planes, 4 * TILE_ROWS), _whole_tiles(matrix, TILE_ROWS)
    products = torch._int_mm(both, tiles.T)[:, : len(matrix)]
    high, low = products[: 2 * len(rows)].unflatten(0, (2, len(rows)))
    return high.long() * 256 + low + low_byte_sums(matrix)


def low_byte_sums(matrix: Tensor) -> Tensor:
    """(R,) int64, what sums of products with (R, C) int8 lack where low bytes are `LOW_BYTE` too small."""
    return LOW_BYTE * matrix.sum(1, dtype=torch.int64)


def _whole_tiles(x: Tensor, least: int) -> Tensor:
    """(n, C) and rows of 0 behind it, up to whole tiles and at least so many rows; no copy where there are."""
    lacking = max(least - len(x), -len(x) % TILE_ROWS)
    return F.pad(x, (0, 0, 0, lacking)) if lacking else x


@fused(keys=(1,), values=(1,), index=(0,), cosine=(0,), sine=(0,))
def _whole_rows(
    keys: Tensor, values: Tensor, index: Tensor, cosine: Tensor, sine: Tensor, exponent: Tensor
) -> Tensor:  # fmt: skip
    keys, values = keys.index_select(1, index), values.index_select(1, index)
    layers, n, heads, dim = keys.shape
    # Bits of the number 2 ** exponent, which no library's power function has to find.
    power = ((exponent.int() + 127) << 23).view(torch.float32).view(layers, 2, heads, dim)
    whole_keys, whole_values = _whole(keys, power[:, None, 0]), _whole(values, power[:, None, 1])
    low, high = whole_keys.chunk(2, -1)
    cosine, sine = cosine.int()[:, None], sine.int()[:, None]
    half = 1 << (ROTATION_BITS - 1)
    turned = torch.cat(
        [(low * cosine + high * sine + half) >> ROTATION_BITS, (high * cosine - low * sine + half) >> ROTATION_BITS], -1
    )
    return torch.stack([turned, whole_values], 2).transpose(0, 1).reshape(n, layers * 2 * heads * dim)


def _whole(x: Tensor, power: Tensor) -> Tensor:
    """To integers of 16 bits; what is no number counts as 0."""
    scaled = torch.nan_to_num(x.float(), nan=0.0) * power
    return scaled.clamp(-float(INPUT_LIMIT), float(INPUT_LIMIT)).round().int()


@fused(rows=(0,))
def folded(rows: Tensor, center: Tensor, fold: Tensor) -> Tensor:
    """(n, C) int32, the integers y above, of (n, C) int32 `whole_rows`."""
    weighed = ((rows - center).long() * fold + (1 << (FOLD_BITS - 1))) >> FOLD_BITS
    return weighed.clamp(-INPUT_LIMIT, INPUT_LIMIT).int()


@fused(sums=(0,), offset=(0,))
def _quantise(sums: Tensor, offset: Tensor, multiplier: Tensor, rounding: int) -> Tensor:
    away = (sums - offset).clamp(-SUM_LIMIT, SUM_LIMIT)
    return away.sign() * ((away.abs() * multiplier + rounding) >> STEP_BITS)
