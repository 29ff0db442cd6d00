"""What a decoder layer does between its matrix products, as Triton kernels: a decode step is bound by memory and by the
number of launches, so each of them does all that can be done in one pass.

Imported only where there is a GPU and Triton.
"""

# ruff: noqa: N803 - constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def,import-not-found,import-untyped"

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from trio_ray.model.decode.rows import NewRows, RunExtents

HEADS_AT_ONCE = 8
COLUMNS_AT_ONCE = 1024


def add_and_norm(hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add `update` to `hidden`, (n, d) both, in place, and return the RMSNorm of the sum."""
    rows, size = hidden.shape
    out = torch.empty_like(hidden)
    block = triton.next_power_of_2(size)
    with torch.cuda.device_of(hidden):
        _add_and_norm[(rows,)](
            hidden, hidden if update is None else update, weight, out, eps, size,
            HAS_UPDATE=update is not None, BLOCK=block, num_warps=max(1, min(16, block // 512)),
        )  # fmt: skip
    return out


def rotate_and_store(
    projected: Tensor,
    tables: tuple[Tensor, Tensor],
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: NewRows,
    extents: RunExtents,
) -> Tensor:
    """Rotate queries and keys, and write the new rows' keys and values to where their sequences have room.

    Args:
        projected: (T, (heads + 2 * kv_heads) * D) queries, keys and values.
        tables: rotary tables, (positions, D) each.
        position: (T,) int32, where in the tables each new row is.
        keys, values: (rows, kv_heads, D) of one layer; written.
        rows: the sequence of each new row.
        extents: where the sequences' rows are.

    Returns:
        (T, heads, D) queries.
    """
    total, width = projected.shape
    kv_heads, dim = keys.shape[1:]
    heads = width // dim - 2 * kv_heads
    query = projected.new_empty(total, heads, dim)
    with torch.cuda.device_of(projected):
        _rotate_and_store[(total, triton.cdiv(heads + 2 * kv_heads, HEADS_AT_ONCE))](
            projected, *tables, query, keys, values,
            position, rows.slot, rows.number, extents.own_start, extents.own_rows,
            HEADS=heads, KV_HEADS=kv_heads, HALF=dim // 2,
            BLOCK_HEADS=HEADS_AT_ONCE, BLOCK_HALF=triton.next_power_of_2(dim // 2), num_warps=2,
        )  # fmt: skip
    return query


def silu_product(gate_up: Tensor) -> Tensor:
    """(n, 2 * m) gates and ups -> (n, m) silu(gate) * up."""
    rows, width = gate_up.shape
    out = gate_up.new_empty(rows, width // 2)
    with torch.cuda.device_of(gate_up):
        _silu_product[(rows, triton.cdiv(width // 2, COLUMNS_AT_ONCE))](
            gate_up, out, width // 2, BLOCK=COLUMNS_AT_ONCE, num_warps=4
        )
    return out


@triton.jit
def _add_and_norm(hidden, update, weight, out, eps, size, HAS_UPDATE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    value = tl.load(hidden + row * size + column, mask=inside, other=0.0)
    dtype = value.dtype
    wide = value.to(tl.float32)
    if HAS_UPDATE:
        wide += tl.load(update + row * size + column, mask=inside, other=0.0).to(tl.float32)
        value = wide.to(dtype)
        tl.store(hidden + row * size + column, value, mask=inside)
        wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    normed = (wide * scale).to(dtype).to(tl.float32)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + column, (normed * factor).to(dtype), mask=inside)


@triton.jit
def _rotate_and_store(
    projected, cos, sin, query, keys, values, position, row_slot, row_number, own_start, own_rows,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK_HALF)
    inside = column < HALF
    slot = tl.load(row_slot + row)
    place = (tl.load(own_start + slot) + tl.load(own_rows + slot) + tl.load(row_number + row)).to(tl.int64)
    table = tl.load(position + row).to(tl.int64) * 2 * HALF + column
    low_cos, low_sin = tl.load(cos + table, mask=inside), tl.load(sin + table, mask=inside)
    high_cos, high_sin = tl.load(cos + table + HALF, mask=inside), tl.load(sin + table + HALF, mask=inside)
    there = (head < HEADS + 2 * KV_HEADS)[:, None] & inside[None]
    source = projected + (row * (HEADS + 2 * KV_HEADS) + head)[:, None] * 2 * HALF + column[None]
    low, high = tl.load(source, mask=there, other=0.0), tl.load(source + HALF, mask=there, other=0.0)
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    turned_low = (wide_low * low_cos[None] - wide_high * low_sin[None]).to(low.dtype)
    turned_high = (wide_high * high_cos[None] + wide_low * high_sin[None]).to(low.dtype)
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    target = query + (row * HEADS + head)[:, None] * 2 * HALF + column[None]
    mask = is_query[:, None] & inside[None]
    tl.store(target, turned_low, mask=mask)
    tl.store(target + HALF, turned_high, mask=mask)
    target = keys + (place * KV_HEADS + head - HEADS)[:, None] * 2 * HALF + column[None]
    mask = (~is_query & ~is_value)[:, None] & inside[None]
    tl.store(target, turned_low, mask=mask)
    tl.store(target + HALF, turned_high, mask=mask)
    target = values + (place * KV_HEADS + head - HEADS - KV_HEADS)[:, None] * 2 * HALF + column[None]
    mask = is_value[:, None] & there
    tl.store(target, low, mask=mask)
    tl.store(target + HALF, high, mask=mask)


@triton.jit
def _silu_product(gate_up, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up + row * 2 * size + column, mask=inside, other=0.0)
    up = tl.load(gate_up + (row * 2 + 1) * size + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    active = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + row * size + column, (active * up.to(tl.float32)).to(gate.dtype), mask=inside)
