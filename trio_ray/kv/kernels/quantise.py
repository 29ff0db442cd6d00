"""`quantise` as fused kernels: gather, minimum and maximum, quantise and pack in one pass over the rows, and back.

Imported only where there is a GPU and Triton. Every function gives the bytes that its namesake in `quantise` gives; the
reasons why it can are told there. A program handles one tile; the parts of a byte are loaded one by one, so nothing is
ever moved between threads but minima and maxima.
"""

# ruff: noqa: N803 - constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def,import-not-found,import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trio_ray.kv.codecs.quantise import RowGroups, codes_per_byte

LIMIT = tl.constexpr(65504.0)
TINY = tl.constexpr(2.0**-25)
ROUND = tl.constexpr(8388608.0)
"""2**23: a number from 0 to this, plus and minus it, is rounded half to even."""

TILE = 4096
"""Elements a program for vectors handles."""
CHANNEL_TILE = 8192
"""Elements a program for channels handles, at least one channel of a group of rows."""


def compress_channels(source: Tensor, groups: RowGroups, bits: int) -> tuple[Tensor, Tensor]:
    """See `quantise`."""
    source = _with_dense_rows(source)
    layers, _, heads, dim = source.shape
    starts, rows = groups.starts, groups.rows.rows
    width = dim // codes_per_byte(bits)
    codes = torch.empty((len(rows), layers, heads, width), dtype=torch.uint8, device=rows.device)
    grids = torch.empty((len(starts) - 1, layers, heads, dim), dtype=torch.int32, device=rows.device)
    if len(rows):
        with torch.cuda.device_of(source):
            launch, sizes = _channel_tiles(groups, source.shape, bits)
            _compress_channels[launch](
                source, rows, starts, codes, grids, source.stride(0), source.stride(1), heads,
                STEPS=2**bits - 1, num_warps=8, **sizes,
            )  # fmt: skip
    return codes, grids


def decompress_channels(codes: Tensor, grids: Tensor, groups: RowGroups, bits: int, out: Tensor) -> None:
    """See `quantise`."""
    if len(groups.rows.rows):
        launch, sizes = _channel_tiles(groups, out.shape, bits)
        with torch.cuda.device_of(out):
            _decompress_channels[launch](
                codes, grids, groups.rows.rows, groups.starts, out, out.stride(0), out.stride(1), out.shape[2],
                num_warps=8, **sizes,
            )  # fmt: skip


def compress_vectors(source: Tensor, rows: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]:
    """See `quantise`."""
    source = _with_dense_rows(source)
    layers, _, heads, dim = source.shape
    codes = torch.empty((len(rows), layers, heads, dim // codes_per_byte(bits)), dtype=torch.uint8, device=rows.device)
    grids = torch.empty((len(rows), layers, heads, dim // group), dtype=torch.int32, device=rows.device)
    if len(rows):
        launch, sizes = _vector_tiles(len(rows), layers, heads * dim, group)
        with torch.cuda.device_of(source):
            _compress_vectors[launch](
                source, rows, codes, grids, source.stride(0), source.stride(1),
                STEPS=2**bits - 1, PER_BYTE=codes_per_byte(bits), num_warps=4, **sizes,
            )  # fmt: skip
    return codes, grids


def decompress_vectors(codes: Tensor, grids: Tensor, rows: Tensor, group: int, bits: int, out: Tensor) -> None:
    """See `quantise`."""
    layers, _, heads, dim = out.shape
    if len(rows):
        launch, sizes = _vector_tiles(len(rows), layers, heads * dim, group)
        with torch.cuda.device_of(out):
            _decompress_vectors[launch](
                codes, grids, rows, out, out.stride(0), out.stride(1),
                PER_BYTE=codes_per_byte(bits), num_warps=4, **sizes,
            )  # fmt: skip


def _with_dense_rows(source: Tensor) -> Tensor:
    """The same with heads and channels of a row side by side, as the kernels read them."""
    dense = source.stride(3) == 1 and source.stride(2) == source.shape[3]
    return source if dense else source.contiguous()


def _channel_tiles(groups: RowGroups, shape: torch.Size, bits: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Launch grid and tile sizes for (layers, T, heads, dim) in groups of rows."""
    layers, _, heads, dim = shape
    width = dim // codes_per_byte(bits)
    block = min(triton.next_power_of_2(width), CHANNEL_TILE // groups.size)
    blocks = triton.cdiv(width, block)
    sizes = {"DIM": dim, "GROUP": groups.size, "PER_BYTE": codes_per_byte(bits), "BLOCK": block, "BLOCKS": blocks}
    return (len(groups.starts) - 1, layers, heads * blocks), sizes


def _vector_tiles(rows: int, layers: int, width: int, group: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Launch grid and tile sizes for rows of `width` channels in groups."""
    vectors = width // group
    block = min(TILE // group, triton.next_power_of_2(vectors))
    return (rows, layers, triton.cdiv(vectors, block)), {"VECTORS": vectors, "GROUP": group, "BLOCK": block}


@triton.jit
def _clean(x):
    x = x.to(tl.float32)
    x = tl.where(tl.abs(x) >= TINY, x, 0.0)
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT)


@triton.jit
def _half_down(x):
    half = x.to(tl.float16)
    number = half.to(tl.int16, bitcast=True).to(tl.int32)
    back = half.to(tl.float32)
    below = tl.where(back > 0.0, number - 1, tl.where(back < 0.0, number + 1, -0x7FFF))
    return tl.where(back > x, below, number).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _half_up(x):
    half = x.to(tl.float16)
    number = half.to(tl.int16, bitcast=True).to(tl.int32)
    return tl.where(half.to(tl.float32) < x, number + 1, number).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _grid(low, high, STEPS: tl.constexpr):
    zero = _half_down(low)
    steps = tl.zeros_like(low) + STEPS
    return zero, _half_up(tl.div_rn(high - zero.to(tl.float32), steps))


@triton.jit
def _join_grid(zero, scale):
    low = zero.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (scale.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _split_grid(grid):
    zero = (grid & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    scale = ((grid >> 16) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    return zero.to(tl.float32), scale.to(tl.float32)


@triton.jit
def _quantise(x, zero, scale):
    step = tl.zeros_like(x) + scale.to(tl.float32)
    y = tl.div_rn(x - zero.to(tl.float32), tl.where(step > 0.0, step, 1.0))  # without a step x equals zero
    return ((y + ROUND) - ROUND).to(tl.int32)


@triton.jit
def _restore(codes, zero, scale):
    return tl.minimum(zero + codes.to(tl.float32) * scale, LIMIT)


@triton.jit
def _compress_channels(
    source, rows, starts, codes, grids, layer_stride, row_stride, heads,
    STEPS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, PER_BYTE: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    group, layer, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2) // BLOCKS
    layers = tl.num_programs(1)
    WIDTH: tl.constexpr = DIM // PER_BYTE
    slot = tl.load(starts + group) + tl.arange(0, GROUP)
    real = slot < tl.load(starts + group + 1)
    row = tl.load(rows + slot, mask=real, other=0)
    column = tl.program_id(2) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    mask = real[:, None] & inside[None, :]
    place = source + layer * layer_stride + head * DIM + row[:, None] * row_stride + column[None, :]
    grid_place = grids + ((group * layers + layer) * heads + head) * DIM + column
    packed = tl.zeros((GROUP, BLOCK), tl.int32)
    for part in tl.static_range(PER_BYTE):
        x = _clean(tl.load(place + part * WIDTH, mask=mask, other=0.0))
        low = tl.min(tl.where(real[:, None], x, LIMIT), axis=0)
        high = tl.max(tl.where(real[:, None], x, -LIMIT), axis=0)
        zero, scale = _grid(low, high, STEPS)
        tl.store(grid_place + part * WIDTH, _join_grid(zero, scale), mask=inside)
        packed |= _quantise(x, zero[None, :], scale[None, :]) << (part * (8 // PER_BYTE))
    code_place = codes + ((slot[:, None] * layers + layer) * heads + head) * WIDTH + column[None, :]
    tl.store(code_place, packed.to(tl.uint8), mask=mask)


@triton.jit
def _decompress_channels(
    codes, grids, rows, starts, out, layer_stride, row_stride, heads,
    DIM: tl.constexpr, GROUP: tl.constexpr, PER_BYTE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    group, layer, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2) // BLOCKS
    layers = tl.num_programs(1)
    WIDTH: tl.constexpr = DIM // PER_BYTE
    BITS: tl.constexpr = 8 // PER_BYTE
    slot = tl.load(starts + group) + tl.arange(0, GROUP)
    real = slot < tl.load(starts + group + 1)
    row = tl.load(rows + slot, mask=real, other=0)
    column = tl.program_id(2) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    mask = real[:, None] & inside[None, :]
    code_place = codes + ((slot[:, None] * layers + layer) * heads + head) * WIDTH + column[None, :]
    packed = tl.load(code_place, mask=mask, other=0).to(tl.int32)
    grid_place = grids + ((group * layers + layer) * heads + head) * DIM + column
    place = out + layer * layer_stride + head * DIM + row[:, None] * row_stride + column[None, :]
    for part in tl.static_range(PER_BYTE):
        zero, scale = _split_grid(tl.load(grid_place + part * WIDTH, mask=inside, other=0))
        x = _restore((packed >> (part * BITS)) & ((1 << BITS) - 1), zero[None, :], scale[None, :])
        tl.store(place + part * WIDTH, x.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _compress_vectors(
    source, rows, codes, grids, layer_stride, row_stride,
    VECTORS: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr, PER_BYTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot, layer = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    vector = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    WIDTH: tl.constexpr = GROUP // PER_BYTE
    inside = vector < VECTORS
    column = tl.arange(0, WIDTH)
    place = (
        source + layer * layer_stride + tl.load(rows + slot) * row_stride + vector[:, None] * GROUP + column[None, :]
    )
    low = tl.full((BLOCK,), LIMIT, tl.float32)
    high = tl.full((BLOCK,), -LIMIT, tl.float32)
    for part in tl.static_range(PER_BYTE):
        x = _clean(tl.load(place + part * WIDTH, mask=inside[:, None], other=0.0))
        low = tl.minimum(low, tl.min(x, axis=1))
        high = tl.maximum(high, tl.max(x, axis=1))
    zero, scale = _grid(low, high, STEPS)
    first = (slot * tl.num_programs(1) + layer) * VECTORS
    tl.store(grids + first + vector, _join_grid(zero, scale), mask=inside)
    packed = tl.zeros((BLOCK, WIDTH), tl.int32)
    for part in tl.static_range(PER_BYTE):
        x = _clean(tl.load(place + part * WIDTH, mask=inside[:, None], other=0.0))
        packed |= _quantise(x, zero[:, None], scale[:, None]) << (part * (8 // PER_BYTE))
    code_place = codes + first * WIDTH + vector[:, None] * WIDTH + column[None, :]
    tl.store(code_place, packed.to(tl.uint8), mask=inside[:, None])


@triton.jit
def _decompress_vectors(
    codes, grids, rows, out, layer_stride, row_stride,
    VECTORS: tl.constexpr, GROUP: tl.constexpr, PER_BYTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot, layer = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    vector = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    WIDTH: tl.constexpr = GROUP // PER_BYTE
    BITS: tl.constexpr = 8 // PER_BYTE
    inside = vector < VECTORS
    column = tl.arange(0, WIDTH)
    first = (slot * tl.num_programs(1) + layer) * VECTORS
    zero, scale = _split_grid(tl.load(grids + first + vector, mask=inside, other=0))
    code_place = codes + first * WIDTH + vector[:, None] * WIDTH + column[None, :]
    packed = tl.load(code_place, mask=inside[:, None], other=0).to(tl.int32)
    place = out + layer * layer_stride + tl.load(rows + slot) * row_stride + vector[:, None] * GROUP + column[None, :]
    for part in tl.static_range(PER_BYTE):
        x = _restore((packed >> (part * BITS)) & ((1 << BITS) - 1), zero[:, None], scale[:, None])
        tl.store(place + part * WIDTH, x.to(out.dtype.element_ty), mask=inside[:, None])
