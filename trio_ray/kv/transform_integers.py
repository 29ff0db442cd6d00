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

from trio_ray.kv.transform_basis import FOLD_BITS, INPUT_LIMIT, ROTATION_BITS, STEP_BITS, Basis, Components, Group
from trio_ray.method.fusion import fused

SUM_LIMIT = 1 << 38

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

    def in_whole_tiles(self) -> Chunk:
        """The same, with row 0 behind it so often that both bytes of all rows fill tiles of a GPU's matrix units; only
        `mean` stays as long as it is.
        """
        lacking = max(TILE_ROWS * 2 - len(self.index), -len(self.index) % (TILE_ROWS // 2))
        cosine, sine = (F.pad(table, (0, 0, 0, lacking)) for table in (self.cosine, self.sine))
        return Chunk(F.pad(self.index, (0, lacking)), self.mean, cosine, sine)


def whole_rows(exponent: Tensor, keys: Tensor, values: Tensor, chunk: Chunk) -> Tensor:
    """(n, C) int32, the integers x above, keys turned back.

    Args:
        exponent: (C,) int8 of the layers that these are, `Group.exponent`.
        keys, values: (layers, T, kv_heads, head_dim), keys rotated.
        chunk: which of the T rows.
    """
    return _whole_rows(keys, values, chunk.index, chunk.cosine, chunk.sine, exponent)


def row_symbols(group: Group, kind: int, rounding: int, keys: Tensor, values: Tensor, chunk: Chunk) -> Tensor:
    """(n, R) integers, the symbols of a chunk in a group's layers.

    Args:
        group: on the device of the others.
        kind: of the rows, its number in `KINDS`.
        rounding: of the basis.
        keys, values: (layers, T, kv_heads, head_dim) of the group's layers, keys rotated.
        chunk: which of the T rows.
    """
    part = group.kinds[kind]
    if keys.is_cuda:
        return row_symbols_by_bytes(part, group.exponent, rounding, keys, values, chunk)
    return symbols(whole_rows(group.exponent, keys, values, chunk), part, chunk.mean, rounding)


def row_symbols_by_bytes(
    part: Components, exponent: Tensor, rounding: int, keys: Tensor, values: Tensor, chunk: Chunk
) -> Tensor:
    """The same as a GPU is quickest at: one pass over the states, one 8-bit matrix product, one pass over the sums."""
    count, chunk = len(chunk.index), chunk.in_whole_tiles()
    planes = _planes_of_rows(
        keys, values, chunk.index, chunk.cosine, chunk.sine, exponent, part.center, part.fold
    )  # fmt: skip
    products = _products(planes, part.matrix)[:, :count]
    return _symbols_of_products(products, _sums(part.matrix), part.offset, chunk.mean, part.multiplier, rounding)


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
    return _joined(_products(_planes(rows), matrix), _sums(matrix))


@fused(keys=(1,), values=(1,), index=(0,), cosine=(0,), sine=(0,))
def _planes_of_rows(
    keys: Tensor, values: Tensor, index: Tensor, cosine: Tensor, sine: Tensor, exponent: Tensor, center: Tensor,
    fold: Tensor,
) -> Tensor:  # fmt: skip
    """(2, n, C) int8: from 16-bit states to the product's input in one pass over memory."""
    return _planes(folded(_whole_rows(keys, values, index, cosine, sine, exponent), center, fold))


def _planes(rows: Tensor) -> Tensor:
    """(2, n, C) int8 high and low bytes of 16-bit integers: `high * 256 + low + 128`."""
    return torch.stack([(rows >> 8).to(torch.int8), ((rows & 255) - 128).to(torch.int8)])


def _products(planes: Tensor, matrix: Tensor) -> Tensor:
    """(2, n, R) int32 products of both bytes with (R, C) int8; the GPU's units want whole tiles."""
    rows, components = planes.shape[1], len(matrix)
    both, tiles = _whole_tiles(planes.flatten(0, 1), 4 * TILE_ROWS), _whole_tiles(matrix, TILE_ROWS)
    return torch._int_mm(both, tiles.T)[: 2 * rows].unflatten(0, (2, rows))[:, :, :components]


def _whole_tiles(x: Tensor, least: int) -> Tensor:
    """(n, C) and rows of 0 behind it, up to whole tiles and at least so many rows; no copy where there are."""
    lacking = max(least - len(x), -len(x) % TILE_ROWS)
    return F.pad(x, (0, 0, 0, lacking)) if lacking else x


def _sums(matrix: Tensor) -> Tensor:
    """(R,) int64."""
    return matrix.sum(1, dtype=torch.int64)


def _joined(products: Tensor, sums: Tensor) -> Tensor:
    """(n, R) int64 from `_products`; `sums` (R,) int64 of the matrix make up for the 128 that low bytes lack."""
    return products[0].long() * 256 + products[1] + 128 * sums


@fused(products=(1, 2), sums=(0,), offset=(1,), mean=(0,), multiplier=(0,))
def _symbols_of_products(
    products: Tensor, sums: Tensor, offset: Tensor, mean: Tensor, multiplier: Tensor, rounding: int
) -> Tensor:
    """(n, R) int32: no symbol has more bits."""
    return _quantise(_joined(products, sums), offset[mean], multiplier, rounding).int()


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
