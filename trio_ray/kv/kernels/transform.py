"""Rows to packed symbols on a GPU: one fused kernel ahead of an 8-bit matrix product, and one behind it.

Imported only where there is a GPU and Triton. `KernelRowCoder` gives the bytes that `TorchRowCoder` gives. The first
kernel reads each state once and leaves the product's input; the second reads each sum once and writes packed bytes
where they stay, so that nothing between states and bytes is ever copied. What differs from group to group (components,
columns) is no constant of a kernel: each is compiled once.
"""

# ruff: noqa: N803 - constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def,import-not-found,import-untyped"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.codecs.transform_bands import BANDS, PackedPlaces
from trio_ray.kv.codecs.transform_basis import FOLD_BITS, INPUT_LIMIT, ROTATION_BITS, STEP_BITS, Group
from trio_ray.kv.codecs.transform_integers import LOW_BYTE, SUM_LIMIT, Chunk, low_byte_sums

TILE = 16
"""Rows and components that a product is made for are multiples of this: tiles of the matrix units, aligned rows."""

STATE_ROWS = 32
"""Rows that a program of the first kernel handles, of one head."""
PACKED_ROWS, PACKED_BYTES = 8, 32
"""Rows and bytes (of the wide band integers) of each that a program of the second kernel handles: a byte a thread, so
that a warp reads a row's neighbours.
"""

MOST_INPUT = tl.constexpr(INPUT_LIMIT)
MOST_FLOAT = tl.constexpr(float(INPUT_LIMIT))
MOST_SUM = tl.constexpr(SUM_LIMIT)
TURN, HALF_TURN = tl.constexpr(ROTATION_BITS), tl.constexpr(1 << (ROTATION_BITS - 1))
FOLD, HALF_FOLD = tl.constexpr(FOLD_BITS), tl.constexpr(1 << (FOLD_BITS - 1))
STEP = tl.constexpr(STEP_BITS)
LOW = tl.constexpr(LOW_BYTE)
ROUND = tl.constexpr(12582912.0)
"""1.5 * 2**23: a number below 2**22 either way, plus and minus it, is rounded half to even."""

WIDE, BYTE, NIBBLE, TRIT = (tl.constexpr(band.limit) for band in BANDS)
NIBBLES, TRITS = tl.constexpr(BANDS[2].per_byte), tl.constexpr(BANDS[3].per_byte)
COLUMNS = tl.constexpr(len(BANDS))


@dataclass(frozen=True)
class KernelRowCoder:
    """See `TorchRowCoder`. C channels, R components.

    Attributes:
        counts: components in each band.
        exponent, center, fold: (C,), see `Components`.
        matrix: (R and up to 15 rows of 0, C) int8.
        offset: (means, R) int64, with the sums that low bytes lack taken from it.
        multiplier: (R,) int32.
        rounding: of the basis.
    """

    counts: tuple[int, ...]
    exponent: Tensor
    center: Tensor
    fold: Tensor
    matrix: Tensor
    offset: Tensor
    multiplier: Tensor
    rounding: int

    @classmethod
    def of(cls, group: Group, kind: int, rounding: int) -> KernelRowCoder:
        """Of a group on the device."""
        part = group.kinds[kind]
        return cls(
            counts=part.counts,
            exponent=group.exponent,
            center=part.center,
            fold=part.fold,
            matrix=F.pad(part.matrix, (0, 0, 0, -len(part.matrix) % TILE)),
            offset=part.offset - low_byte_sums(part.matrix),
            multiplier=part.multiplier,
            rounding=rounding,
        )

    def put(self, keys: Tensor, values: Tensor, chunk: Chunk, places: PackedPlaces) -> None:
        """See `TorchRowCoder`."""
        if len(chunk.index) and sum(self.counts):
            with torch.cuda.device_of(keys):
                planes = self._planes(keys, values, chunk)
                self._pack(torch._int_mm(planes, self.matrix.T), chunk.mean, places)

    def _planes(self, keys: Tensor, values: Tensor, chunk: Chunk) -> Tensor:
        """(2 * n and some rows of any content, C) int8: of the rows' integers the high bytes, then the low ones."""
        keys, values = _with_dense_rows(keys), _with_dense_rows(values)
        layers, _, heads, dim = keys.shape
        rows = len(chunk.index)
        planes = torch.empty((2 * _whole_tiles(rows), len(self.fold)), dtype=torch.int8, device=keys.device)
        _planes_of_rows[(layers * heads, triton.cdiv(rows, STATE_ROWS))](
            keys, values, chunk.index, chunk.cosine, chunk.sine, self.exponent, self.center, self.fold, planes,
            keys.stride(0), keys.stride(1), values.stride(0), values.stride(1), rows, len(planes) // 2, heads,
            HALF=dim // 2, BLOCK=triton.next_power_of_2(dim // 2), ROWS=STATE_ROWS, num_warps=8,
        )  # fmt: skip
        return planes

    def _pack(self, products: Tensor, mean: Tensor, places: PackedPlaces) -> None:
        """`products` (rows of `_planes`, R and some columns) int32: what is to spare need not be cut off."""
        widths = (self.counts[0], *(band.width(count) for band, count in zip(BANDS[1:], self.counts[1:], strict=True)))
        tiles = [triton.cdiv(width, PACKED_BYTES) for width in widths]
        _pack_rows[(sum(tiles) * triton.cdiv(len(mean), PACKED_ROWS),)](
            products, self.offset, mean, self.multiplier, places.rows, places.stored, self.rounding, len(mean),
            len(products) // 2, products.shape[1], sum(self.counts), *self.counts, *places.columns,
            ROWS=PACKED_ROWS, BYTES=PACKED_BYTES, num_warps=8,
        )  # fmt: skip


def _whole_tiles(rows: int) -> int:
    return -(-rows // TILE) * TILE


def _with_dense_rows(source: Tensor) -> Tensor:
    """The same with heads and channels of a row side by side, as the kernel reads them."""
    dense = source.stride(3) == 1 and source.stride(2) == source.shape[3]
    return source if dense else source.contiguous()


@triton.jit
def _whole(x, exponent):
    x = x.to(tl.float32)
    x = tl.where(x == x, x, 0.0)  # what is no number counts as 0
    scaled = x * ((exponent.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)[None, :]
    return ((tl.minimum(tl.maximum(scaled, -MOST_FLOAT), MOST_FLOAT) + ROUND) - ROUND).to(tl.int32)


@triton.jit
def _put_planes(whole, center, fold, place, plane_stride, mask):
    weighed = ((whole - center[None, :]).to(tl.int64) * fold[None, :] + HALF_FOLD) >> FOLD
    y = tl.minimum(tl.maximum(weighed, -MOST_INPUT), MOST_INPUT).to(tl.int32)
    tl.store(place, (y >> 8).to(tl.int8), mask=mask)
    tl.store(place + plane_stride, ((y & 255) - LOW).to(tl.int8), mask=mask)


@triton.jit(do_not_specialize=["rows", "plane_rows"])
def _planes_of_rows(
    keys, values, index, cosine, sine, exponent, center, fold, planes, key_layer_stride, key_row_stride,
    value_layer_stride, value_row_stride, rows, plane_rows, heads,
    HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    layer, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    slot = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = column < HALF
    mask = (slot < rows)[:, None] & inside[None, :]
    row = tl.load(index + slot, mask=slot < rows, other=0)
    channels = tl.num_programs(0).to(tl.int64) * (4 * HALF)
    first = (layer * 2 * heads + head) * (2 * HALF) + column
    second = first + HALF
    place = planes + slot[:, None] * channels
    plane_stride = plane_rows * channels

    key = keys + layer * key_layer_stride + row[:, None] * key_row_stride + (head * (2 * HALF) + column)[None, :]
    low = _whole(tl.load(key, mask=mask, other=0.0), tl.load(exponent + first, mask=inside, other=0))
    high = _whole(tl.load(key + HALF, mask=mask, other=0.0), tl.load(exponent + second, mask=inside, other=0))
    table = slot[:, None] * HALF + column[None, :]
    cos = tl.load(cosine + table, mask=mask, other=0).to(tl.int32)
    sin = tl.load(sine + table, mask=mask, other=0).to(tl.int32)
    turned_low = (low * cos + high * sin + HALF_TURN) >> TURN
    turned_high = (high * cos - low * sin + HALF_TURN) >> TURN
    _put_planes(
        turned_low, tl.load(center + first, mask=inside, other=0), tl.load(fold + first, mask=inside, other=0),
        place + first[None, :], plane_stride, mask,
    )  # fmt: skip
    _put_planes(
        turned_high, tl.load(center + second, mask=inside, other=0), tl.load(fold + second, mask=inside, other=0),
        place + second[None, :], plane_stride, mask,
    )  # fmt: skip

    value = values + layer * value_layer_stride + row[:, None] * value_row_stride
    value += (head * (2 * HALF) + column)[None, :]
    for part in tl.static_range(2):
        channel = first + (heads * 2 + part) * HALF
        whole = _whole(
            tl.load(value + part * HALF, mask=mask, other=0.0), tl.load(exponent + channel, mask=inside, other=0)
        )
        _put_planes(
            whole, tl.load(center + channel, mask=inside, other=0), tl.load(fold + channel, mask=inside, other=0),
            place + channel[None, :], plane_stride, mask,
        )  # fmt: skip


@triton.jit
def _symbols(place, plane_stride, offset, multiplier, component, inside, rounding, real, LIMIT: tl.constexpr):
    """(components, rows) of those `inside` and `real`, 0 elsewhere. `place`, `offset`: where rows' numbers begin.

    Components come first: numbers apart from each other are read by the threads of a warp along that dimension.
    """
    mask = inside[:, None] & real[None, :]
    place = place[None, :] + component[:, None]
    high = tl.load(place, mask=mask, other=0).to(tl.int64)
    low = tl.load(place + plane_stride, mask=mask, other=0)
    away = high * 256 + low - tl.load(offset[None, :] + component[:, None], mask=mask, other=0)
    away = tl.minimum(tl.maximum(away, -MOST_SUM), MOST_SUM)
    size = tl.load(multiplier + component, mask=inside, other=0).to(tl.int64)
    magnitude = tl.minimum((tl.abs(away) * size[:, None] + rounding) >> STEP, LIMIT).to(tl.int32)
    return tl.where(away > 0, magnitude, tl.where(away < 0, -magnitude, 0))


@triton.jit
def _put_wide(
    place, plane_stride, offset, multiplier, rounding, real, stored, first, count, tile, BYTES: tl.constexpr
):  # fmt: skip
    column = tile * BYTES + tl.arange(0, BYTES)
    inside = column < count
    symbols = _symbols(place, plane_stride, offset, multiplier, first + column, inside, rounding, real, WIDE)
    unsigned = symbols + (WIDE + 1)
    mask = inside[:, None] & real[None, :]
    stored = stored[None, :] + column[:, None]
    tl.store(stored, (unsigned & 255).to(tl.uint8), mask=mask)
    tl.store(stored + count, (unsigned >> 8).to(tl.uint8), mask=mask)


@triton.jit
def _put_digits(
    place, plane_stride, offset, multiplier, rounding, real, stored, first, count, tile, BYTES: tl.constexpr,
    LIMIT: tl.constexpr, PER_BYTE: tl.constexpr,
):  # fmt: skip
    column = tile * BYTES + tl.arange(0, BYTES)
    packed = tl.zeros((BYTES, stored.shape[0]), tl.int32)
    for part in tl.static_range(PER_BYTE):
        digit = column * PER_BYTE + part
        symbols = _symbols(
            place, plane_stride, offset, multiplier, first + digit, digit < count, rounding, real, LIMIT
        )  # fmt: skip
        packed += (symbols + LIMIT) * (2 * LIMIT + 1) ** part
    mask = (column * PER_BYTE < count)[:, None] & real[None, :]
    tl.store(stored[None, :] + column[:, None], packed.to(tl.uint8), mask=mask)


VARYING = [
    "rounding", "rows", "plane_rows", "wide", "byte", "nibble", "trit", "wide_column", "byte_column", "nibble_column",
    "trit_column", "components",
]  # fmt: skip
"""Arguments whose values no kernel is compiled for."""


@triton.jit(do_not_specialize=VARYING)
def _pack_rows(
    products, offset, mean, multiplier, places, stored, rounding, rows, plane_rows, product_stride, components,
    wide, byte, nibble, trit, wide_column, byte_column, nibble_column, trit_column,
    ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    wide_tiles, byte_tiles = tl.cdiv(wide, BYTES), tl.cdiv(byte, BYTES)
    nibble_tiles, trit_tiles = tl.cdiv(nibble, NIBBLES * BYTES), tl.cdiv(trit, TRITS * BYTES)
    tiles = wide_tiles + byte_tiles + nibble_tiles + trit_tiles
    tile = tl.program_id(0) % tiles
    slot = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = slot < rows
    place = products + slot * product_stride
    plane_stride = plane_rows.to(tl.int64) * product_stride
    offset += tl.load(mean + slot, mask=real, other=0) * components
    places += slot * COLUMNS
    if tile < wide_tiles:
        begin = stored + tl.load(places, mask=real, other=0) + wide_column
        _put_wide(place, plane_stride, offset, multiplier, rounding, real, begin, 0, wide, tile, BYTES)
    elif tile < wide_tiles + byte_tiles:
        begin = stored + tl.load(places + 1, mask=real, other=0) + byte_column
        _put_digits(
            place, plane_stride, offset, multiplier, rounding, real, begin, wide, byte, tile - wide_tiles,
            BYTES, BYTE, 1,
        )  # fmt: skip
    elif tile < wide_tiles + byte_tiles + nibble_tiles:
        begin = stored + tl.load(places + 2, mask=real, other=0) + nibble_column
        _put_digits(
            place, plane_stride, offset, multiplier, rounding, real, begin, wide + byte, nibble,
            tile - wide_tiles - byte_tiles, BYTES, NIBBLE, NIBBLES,
        )  # fmt: skip
    else:
        begin = stored + tl.load(places + 3, mask=real, other=0) + trit_column
        _put_digits(
            place, plane_stride, offset, multiplier, rounding, real, begin, wide + byte + nibble, trit,
            tile - wide_tiles - byte_tiles - nibble_tiles, BYTES, TRIT, TRITS,
        )  # fmt: skip
