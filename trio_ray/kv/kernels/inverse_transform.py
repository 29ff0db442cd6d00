"""From packed symbols to keys and values on a GPU.

One kernel unpacks the symbols of all groups of a segment, each group has one matrix product, and one kernel scales the
products, adds the mean rows, rotates keys to their positions and writes rows to where decoding reads them.

Imported only where there is a GPU and Triton. What differs from group to group lies in tables, so each kernel is
compiled once for a model.
"""

# ruff: noqa: N803 - constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def,import-not-found,import-untyped"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trio_ray.kv.codecs.transform_bands import BANDS
from trio_ray.kv.codecs.transform_basis import ROTATION_BITS
from trio_ray.kv.codecs.transform_inverse import GroupInverse
from trio_ray.kv.target import RowTarget

UNPACKED_ROWS, UNPACKED = 16, 128
"""Rows and components of each that a program of the first kernel handles."""
STATE_ROWS = 4
"""Rows of one layer that a program of the last kernel handles."""
MAX_PRODUCTS = 1 << 28
"""Numbers in the products of rows that are restored at once, which bounds the memory that they take."""

COLUMNS = tl.constexpr(len(BANDS))
TILE_FIELDS = tl.constexpr(7)
LAYER_FIELDS = tl.constexpr(3)
WIDE, BYTE, NIBBLE, TRIT = (tl.constexpr(band.limit) for band in BANDS)
TURN = tl.constexpr(2.0**-ROTATION_BITS)


@dataclass(frozen=True)
class SegmentInverse:
    """The same in all groups of a segment, as the kernels want it.

    Attributes:
        matrices: of the groups.
        scale: (C,) fp32, C being the channels of all groups.
        mean: (means, C) fp32.
        tiles: (n, 7) int64, what the programs of the first kernel unpack: the band; the first component in it; how many
            the group has in it; in which byte of the band a row's own begin; how many components the group's earlier
            bands have; how many all earlier groups have in their matrices; and how many this one.
        layers: (layers, 3) int64: channels of all earlier groups, of this one, and of the earlier layers in it.
    """

    matrices: tuple[Tensor, ...]
    scale: Tensor
    mean: Tensor
    tiles: Tensor
    layers: Tensor

    @classmethod
    def of(cls, groups: Sequence[GroupInverse]) -> SegmentInverse:
        """Groups of consecutive layers, all on one device."""
        tiles, layers = [], []
        columns, earlier, channels = [0] * len(BANDS), 0, 0
        for group in groups:
            ahead = 0
            for number, (band, count) in enumerate(zip(BANDS, group.counts, strict=True)):
                tiles += [
                    (number, first, count, columns[number], ahead, earlier, len(group.matrix))
                    for first in range(0, count, UNPACKED)
                ]
                columns[number] += band.width(count)
                ahead += count
            width = group.matrix.shape[1]
            layers += [(channels, width, layer * (width // group.layers)) for layer in range(group.layers)]
            earlier += len(group.matrix)
            channels += width
        device = groups[0].matrix.device
        return cls(
            matrices=tuple(group.matrix for group in groups),
            scale=torch.cat([group.scale for group in groups]),
            mean=torch.cat([group.mean for group in groups], 1),
            tiles=torch.tensor(tiles, dtype=torch.int64).view(-1, 7).to(device),
            layers=torch.tensor(layers, dtype=torch.int64).to(device),
        )


@dataclass(frozen=True)
class PackedRows:
    """Rows of one kind in a segment, whose symbols lie in stored bytes: of n rows in several segments those from
    `begin` to ahead of `end`. All on the device.

    Attributes:
        stored: flat uint8, of the segment.
        place: (n,) int64, the row of the target that each goes to.
        position: (n,) int32 of each.
        sample: (n,) int64, whose it is.
        mean: (n,) int64, which mean row is added to it.
        first: (B and one, bands) int64: the bytes of a row in each band; and of each sample where in `stored` the row
            with the number 0 would begin.
        begin, end: which rows.
    """

    stored: Tensor
    place: Tensor
    position: Tensor
    sample: Tensor
    mean: Tensor
    first: Tensor
    begin: int
    end: int


def restore_rows(inverse: SegmentInverse, rows: PackedRows, cosine: Tensor, sine: Tensor, target: RowTarget) -> None:
    """Write rows to a target.

    Args:
        inverse: of their kind and segment.
        rows: to be restored.
        cosine, sine: (positions, head_dim / 2) int16, see `Basis`.
        target: its tensors are contiguous in their last two dimensions.
    """
    channels = inverse.scale.shape[0]
    at_once = max(UNPACKED_ROWS, MAX_PRODUCTS // channels // UNPACKED_ROWS * UNPACKED_ROWS)
    with torch.cuda.device_of(target.keys):
        for start in range(rows.begin, rows.end, at_once):
            count = min(at_once, rows.end - start)
            products = _products(inverse, rows, start, count)
            _put_states(inverse, rows, start, count, products, cosine, sine, target)


def _products(inverse: SegmentInverse, rows: PackedRows, start: int, count: int) -> Tensor:
    """Flat fp32: of each group (count, C) products of its symbols and its matrix."""
    device, dtype = rows.stored.device, inverse.matrices[0].dtype
    widths = [len(matrix) for matrix in inverse.matrices]
    symbols = torch.zeros(count * sum(widths), dtype=dtype, device=device)
    if len(inverse.tiles):
        _unpack[(triton.cdiv(count, UNPACKED_ROWS), len(inverse.tiles))](
            rows.stored, rows.sample, rows.first, inverse.tiles, symbols, start, count,
            ROWS=UNPACKED_ROWS, SIZE=UNPACKED, num_warps=4,
        )  # fmt: skip
    products = torch.empty(count * inverse.scale.shape[0], dtype=torch.float32, device=device)
    taken = made = 0
    for matrix, width in zip(inverse.matrices, widths, strict=True):
        own = symbols[taken : taken + count * width].view(count, width)
        into = products[made : made + count * matrix.shape[1]].view(count, -1)
        if dtype == torch.float32:
            torch.mm(own, matrix, out=into)
        else:
            torch.mm(own, matrix, out_dtype=torch.float32, out=into)
        taken, made = taken + own.numel(), made + into.numel()
    return products


def _put_states(
    inverse: SegmentInverse,
    rows: PackedRows,
    start: int,
    count: int,
    products: Tensor,
    cosine: Tensor,
    sine: Tensor,
    target: RowTarget,
) -> None:
    layers, _, heads, dim = target.keys.shape
    keys, values = target.keys, target.values
    _states[(triton.cdiv(count, STATE_ROWS), layers)](
        products, inverse.scale, inverse.mean, inverse.layers, rows.mean, rows.position, rows.place, cosine, sine,
        keys, values, keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        start, count, inverse.scale.shape[0], len(cosine),
        HEADS=heads, HALF=dim // 2, BLOCK=triton.next_power_of_2(heads * dim // 2), ROWS=STATE_ROWS, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["start", "count"])
def _unpack(stored, samples, firsts, tiles, symbols, start, count, ROWS: tl.constexpr, SIZE: tl.constexpr):
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = slot < count
    about = tiles + tl.program_id(1) * TILE_FIELDS
    band, first, number = tl.load(about), tl.load(about + 1), tl.load(about + 2)
    column, ahead = tl.load(about + 3), tl.load(about + 4)
    earlier, width = tl.load(about + 5), tl.load(about + 6)
    component = first + tl.arange(0, SIZE)
    row = (start + slot).to(tl.int64)
    sample = tl.load(samples + row, mask=real, other=0)
    begin = tl.load(firsts + (sample + 1) * COLUMNS + band, mask=real, other=0) + row * tl.load(firsts + band) + column
    mask = real[:, None] & (component < number)[None, :]
    if band == 0:
        place = stored + begin[:, None] + component[None, :]
        low = tl.load(place, mask=mask, other=0).to(tl.int32)
        high = tl.load(place + number, mask=mask, other=0).to(tl.int32)
        symbol = low + (high << 8) - (WIDE + 1)
    elif band == 1:
        symbol = tl.load(stored + begin[:, None] + component[None, :], mask=mask, other=0).to(tl.int32) - BYTE
    elif band == 2:
        packed = tl.load(stored + begin[:, None] + (component // 2)[None, :], mask=mask, other=0).to(tl.int32)
        is_second = (component % 2 == 1)[None, :]
        symbol = tl.where(is_second, packed // (2 * NIBBLE + 1), packed) % (2 * NIBBLE + 1) - NIBBLE
    else:
        packed = tl.load(stored + begin[:, None] + (component // 5)[None, :], mask=mask, other=0).to(tl.int32)
        digit = (component % 5)[None, :]
        packed = tl.where(digit >= 4, packed // 81, packed)
        packed = tl.where(digit == 3, packed // 27, packed)
        packed = tl.where(digit == 2, packed // 9, packed)
        packed = tl.where(digit == 1, packed // 3, packed)
        symbol = packed % (2 * TRIT + 1) - TRIT
    to = symbols + count.to(tl.int64) * earlier + slot.to(tl.int64)[:, None] * width + (ahead + component)[None, :]
    tl.store(to, symbol.to(symbols.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["start", "count"])
def _states(
    products, scales, means, layers, mean, position, target_rows, cosine, sine, keys, values,
    key_layer_stride, key_row_stride, value_layer_stride, value_row_stride, start, count, channels, positions,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = slot < count
    earlier, width, inside = (
        tl.load(layers + layer * LAYER_FIELDS), tl.load(layers + layer * LAYER_FIELDS + 1),
        tl.load(layers + layer * LAYER_FIELDS + 2),
    )  # fmt: skip
    number = (start + slot).to(tl.int64)
    to = tl.load(target_rows + number, mask=real, other=0)
    where = tl.load(position + number, mask=real, other=0).to(tl.int64)
    where = tl.minimum(tl.maximum(where, 0), positions - 1)
    own = tl.arange(0, BLOCK)
    head, pair = own // HALF, own % HALF
    low = head * (2 * HALF) + pair
    mask = real[:, None] & (head < HEADS)[None, :]
    table = where[:, None] * HALF + pair[None, :]
    cos = tl.load(cosine + table, mask=mask, other=0).to(tl.float32) * TURN
    sin = tl.load(sine + table, mask=mask, other=0).to(tl.float32) * TURN
    product = products + count.to(tl.int64) * earlier + slot.to(tl.int64)[:, None] * width + (inside + low)[None, :]
    scale = scales + earlier + inside + low
    average = means + tl.load(mean + number, mask=real, other=0)[:, None] * channels + (earlier + inside + low)[None, :]
    valid = head < HEADS

    first = tl.load(product, mask=mask, other=0.0) * tl.load(scale, mask=valid, other=0.0)[None, :]
    first += tl.load(average, mask=mask, other=0.0)
    second = tl.load(product + HALF, mask=mask, other=0.0) * tl.load(scale + HALF, mask=valid, other=0.0)[None, :]
    second += tl.load(average + HALF, mask=mask, other=0.0)
    key = keys + layer * key_layer_stride + to[:, None] * key_row_stride + low[None, :]
    tl.store(key, (first * cos - second * sin).to(keys.dtype.element_ty), mask=mask)
    tl.store(key + HALF, (second * cos + first * sin).to(keys.dtype.element_ty), mask=mask)

    value = values + layer * value_layer_stride + to[:, None] * value_row_stride + low[None, :]
    for part in tl.static_range(2):
        behind = (2 * HEADS + part) * HALF
        state = (
            tl.load(product + behind, mask=mask, other=0.0) * tl.load(scale + behind, mask=valid, other=0.0)[None, :]
        )
        state += tl.load(average + behind, mask=mask, other=0.0)
        tl.store(value + part * HALF, state.to(values.dtype.element_ty), mask=mask)
