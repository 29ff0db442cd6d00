"""Attention of new rows over the pool as Triton kernels: each new row reads its sequence's prefix and appended tokens.

All lengths are read from device memory, so a CUDA graph replays the same launch at any length. The keys of a sequence
are split among programs; where there is more than one split, a second kernel merges their results.

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

LOG2_E = 1.4426950408889634
BLOCK_KEYS = 64
"""Keys that a program reads at a time."""


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: NewRows,
    extents: RunExtents,
    scale: float,
    chunk: int,
    splits: int,
) -> Tensor:
    """Attention of T new rows, whose own keys and values are in the pool already.

    Args:
        query: (T, heads, D), contiguous.
        keys, values: (rows, kv_heads, D) of one layer, contiguous.
        rows: which sequence each new row belongs to.
        extents: where the sequences' rows are.
        scale: factor on the scores.
        chunk: keys of a split; the last split takes all that remain.
        splits: programs that share the keys of a sequence.

    Returns:
        (T, heads, D).
    """
    total, heads, dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    block_rows = triton.next_power_of_2(group * rows.tile_size)
    out = torch.empty_like(query)
    if splits > 1:
        partial = torch.empty((total, heads, splits, dim), dtype=torch.float32, device=query.device)
        summary = torch.empty((2, total, heads, splits), dtype=torch.float32, device=query.device)
    else:
        partial, summary = out, out
    size = max(16, triton.next_power_of_2(dim))
    with torch.cuda.device_of(query):
        _attend[(rows.tiles, kv_heads, splits)](
            query, keys, values, out, partial, summary,
            extents.prefix_start, extents.prefix_rows, extents.own_start, extents.own_rows,
            rows.slot, rows.number, rows.tile_row, rows.tile_rows,
            scale * LOG2_E, chunk, total * heads * splits,
            HEADS=heads, KV_HEADS=kv_heads, GROUP=group, DIM=dim, SPLITS=splits,
            BLOCK_ROWS=max(16, block_rows), BLOCK_KEYS=BLOCK_KEYS, BLOCK_DIM=size, num_warps=4, num_stages=3,
        )  # fmt: skip
        if splits > 1:
            _merge[(total, heads)](
                partial, summary, out, extents.prefix_rows, extents.own_rows, rows.slot, rows.number,
                chunk, total * heads * splits,
                DIM=dim, SPLITS=splits, BLOCK_SPLITS=triton.next_power_of_2(splits), BLOCK_DIM=size, num_warps=4,
            )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["summary_size"])
def _attend(
    query, keys, values, out, partial, summary,
    prefix_start, prefix_rows, own_start, own_rows, row_slot, row_number, tile_row, tile_rows,
    scale, chunk, summary_size,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """One tile of new rows of a sequence, one key head with its query heads, one split of the keys."""
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, count = tl.load(tile_row + tile), tl.load(tile_rows + tile)
    slot = tl.load(row_slot + first)
    prefix = tl.load(prefix_rows + slot)
    seen_by_first = prefix + tl.load(own_rows + slot) + tl.load(row_number + first) + 1
    total = seen_by_first + count - 1
    start = split * chunk
    stop = total
    if split < SPLITS - 1:
        stop = tl.minimum(start + chunk, total)
    if start < total:
        lane = tl.arange(0, BLOCK_ROWS)
        ahead = lane // GROUP
        real = ahead < count
        seen = seen_by_first + ahead
        column = tl.arange(0, BLOCK_DIM)
        inside = column < DIM
        head = (first + ahead).to(tl.int64) * HEADS + kv_head * GROUP + lane % GROUP
        wanted = real[:, None] & inside[None]
        own_query = tl.load(query + head[:, None] * DIM + column[None], mask=wanted, other=0.0)
        # The row of the pool that holds key n is n + shift of the prefix, or n + shift of the appended tokens.
        prefix_shift = tl.load(prefix_start + slot).to(tl.int64)
        own_shift = tl.load(own_start + slot).to(tl.int64) - prefix
        best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        weight = tl.zeros([BLOCK_ROWS], tl.float32)
        result = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
        for block in range(start, stop, BLOCK_KEYS):
            key = block + tl.arange(0, BLOCK_KEYS)
            row = key + tl.where(key < prefix, prefix_shift, own_shift)
            place = (row * KV_HEADS + kv_head)[:, None] * DIM + column[None]
            there = (key < stop)[:, None] & inside[None]
            block_keys = tl.load(keys + place, mask=there, other=0.0)
            scores = tl.dot(own_query, tl.trans(block_keys), input_precision="ieee") * scale
            scores = tl.where((key[None] < seen[:, None]) & (key < stop)[None], scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            shares = tl.exp2(scores - base[:, None])
            fade = tl.exp2(best - base)
            block_values = tl.load(values + place, mask=there, other=0.0)
            weight = weight * fade + tl.sum(shares, 1)
            result = result * fade[:, None]
            result += tl.dot(shares.to(block_values.dtype), block_values, input_precision="ieee")
            best = higher
        if SPLITS == 1:
            result = result / weight[:, None]
            tl.store(out + head[:, None] * DIM + column[None], result.to(out.dtype.element_ty), mask=wanted)
        else:
            entry = head * SPLITS + split
            tl.store(partial + entry[:, None] * DIM + column[None], result, mask=wanted)
            tl.store(summary + entry, best, mask=real)
            tl.store(summary + summary_size + entry, weight, mask=real)


@triton.jit(do_not_specialize=["summary_size"])
def _merge(
    partial, summary, out, prefix_rows, own_rows, row_slot, row_number, chunk, summary_size,
    DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """The splits of one new row and one query head. Only those are read that hold keys which the row sees."""
    row, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(row_slot + row)
    seen = tl.load(prefix_rows + slot) + tl.load(own_rows + slot) + tl.load(row_number + row) + 1
    split = tl.arange(0, BLOCK_SPLITS)
    there = (split < SPLITS) & (split * chunk < seen)
    column = tl.arange(0, BLOCK_DIM)
    inside = column < DIM
    place = row.to(tl.int64) * tl.num_programs(1) + head
    entry = place * SPLITS + split
    best = tl.load(summary + entry, mask=there, other=float("-inf"))
    factor = tl.exp2(best - tl.max(best, 0))
    weight = tl.sum(factor * tl.load(summary + summary_size + entry, mask=there, other=0.0), 0)
    mask = there[:, None] & inside[None]
    parts = tl.load(partial + entry[:, None] * DIM + column[None], mask=mask, other=0.0)
    result = tl.sum(parts * factor[:, None], 0) / weight
    tl.store(out + place * DIM + column, result.to(out.dtype.element_ty), mask=inside)
