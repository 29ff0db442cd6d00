"""Between the packed keys of all rows and the few queries of each sample: scores one way, gradients the other.

The rotation happens on the way, so that rotated keys are never written. Imported only where there is a GPU and Triton.
"""

# ruff: noqa: N803 - constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def,import-not-found,import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
"""Rows that one program handles. It goes through all heads one after the other, so that the rotary tables are read
once.
"""

LEAST, MOST_QUERIES = 16, 64
"""Bounds of the number of queries: a matrix unit needs tiles of the first size at least, and more than the second would
not fit into registers.
"""


def fit(queries: int, head_dim: int) -> bool:
    """Whether the kernels take so many queries of a sample and key head, and such heads."""
    half = head_dim // 2
    return queries <= MOST_QUERIES and half >= LEAST and half & (half - 1) == 0


def scores(key: Tensor, query: Tensor, cos: Tensor, sin: Tensor, starts: Tensor, width: int) -> Tensor:
    """Scalar products of each sample's rotated keys with its queries.

    Args:
        key: (T, kv_heads * D), before rotation, packed.
        query: (B, kv_heads, M, D), rotated.
        cos, sin: (T, D).
        starts: (B + 1,) int32, where each sample's rows begin.
        width: S, rows of the longest sample or more.

    Returns:
        (B, kv_heads, M, S) in the dtype of the queries; 0 behind a sample's end.
    """
    query = query.contiguous()
    batch, heads, count, dim = query.shape
    out = torch.empty((batch, heads, count, width), dtype=query.dtype, device=query.device)
    with torch.cuda.device_of(key):
        _scores[(triton.cdiv(width, TILE), batch)](
            key, query, cos, sin, starts, out, count, width, **_sizes(heads, count, dim)
        )
    return out


def key_gradient(grad: Tensor, query: Tensor, cos: Tensor, sin: Tensor, starts: Tensor) -> Tensor:
    """(T, kv_heads * D), the gradient at the keys before rotation, from (B, kv_heads, M, S) at the `scores`."""
    query, grad = query.contiguous(), grad.contiguous()
    batch, heads, count, dim = query.shape
    out = torch.empty((len(cos), heads * dim), dtype=query.dtype, device=query.device)
    with torch.cuda.device_of(query):
        _key_gradient[(triton.cdiv(grad.shape[-1], TILE), batch)](
            grad, query, cos, sin, starts, out, count, grad.shape[-1], **_sizes(heads, count, dim)
        )
    return out


def _sizes(heads: int, count: int, dim: int) -> dict[str, int]:
    queries = max(LEAST, triton.next_power_of_2(count))
    return {"HEADS": heads, "HALF": dim // 2, "QUERIES": queries, "ROWS": TILE, "num_warps": 4}


@triton.jit
def _tile(cos, sin, starts, HALF: tl.constexpr, ROWS: tl.constexpr):
    """This program's tile of a sample's rows: their numbers in the sample, a mask of those that exist, their packed row
    numbers, and both halves of their rotary tables, (ROWS, HALF) fp32.
    """
    sample = tl.program_id(1)
    start, stop = tl.load(starts + sample), tl.load(starts + sample + 1)
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = number < stop - start
    row = (start + number).to(tl.int64)
    place = row[:, None] * (2 * HALF) + tl.arange(0, HALF)[None]
    cos_low = tl.load(cos + place, mask=inside[:, None], other=0.0).to(tl.float32)
    cos_high = tl.load(cos + HALF + place, mask=inside[:, None], other=0.0).to(tl.float32)
    sin_low = tl.load(sin + place, mask=inside[:, None], other=0.0).to(tl.float32)
    sin_high = tl.load(sin + HALF + place, mask=inside[:, None], other=0.0).to(tl.float32)
    return number, inside, row, cos_low, cos_high, sin_low, sin_high


@triton.jit
def _queries(query, first, asked, HALF: tl.constexpr, QUERIES: tl.constexpr):
    """Both halves of a head's queries, (QUERIES, HALF)."""
    place = query + (first + tl.arange(0, QUERIES)[:, None]) * (2 * HALF) + tl.arange(0, HALF)[None]
    return tl.load(place, mask=asked[:, None], other=0.0), tl.load(place + HALF, mask=asked[:, None], other=0.0)


@triton.jit
def _scores(
    key, query, cos, sin, starts, out, count, width,
    HEADS: tl.constexpr, HALF: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    number, inside, row, cos_low, cos_high, sin_low, sin_high = _tile(cos, sin, starts, HALF, ROWS)
    which = tl.arange(0, QUERIES)
    asked = which < count
    for head in range(HEADS):
        place = row[:, None] * (HEADS * 2 * HALF) + head * 2 * HALF + tl.arange(0, HALF)[None]
        low = tl.load(key + place, mask=inside[:, None], other=0.0)
        high = tl.load(key + HALF + place, mask=inside[:, None], other=0.0)
        turned_low = (low.to(tl.float32) * cos_low - high.to(tl.float32) * sin_low).to(low.dtype)
        turned_high = (high.to(tl.float32) * cos_high + low.to(tl.float32) * sin_high).to(low.dtype)
        first = (tl.program_id(1).to(tl.int64) * HEADS + head) * count
        query_low, query_high = _queries(query, first, asked, HALF, QUERIES)
        found = tl.dot(query_low, tl.trans(turned_low), input_precision="ieee")
        found += tl.dot(query_high, tl.trans(turned_high), input_precision="ieee")
        target = out + (first + which[:, None]) * width + number[None]
        tl.store(target, found.to(low.dtype), mask=asked[:, None] & (number < width)[None])


@triton.jit
def _key_gradient(
    grad, query, cos, sin, starts, out, count, width,
    HEADS: tl.constexpr, HALF: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    number, inside, row, cos_low, cos_high, sin_low, sin_high = _tile(cos, sin, starts, HALF, ROWS)
    which = tl.arange(0, QUERIES)
    asked = which < count
    for head in range(HEADS):
        first = (tl.program_id(1).to(tl.int64) * HEADS + head) * count
        query_low, query_high = _queries(query, first, asked, HALF, QUERIES)
        source = grad + (first + which[:, None]) * width + number[None]
        weight = tl.trans(tl.load(source, mask=asked[:, None] & inside[None], other=0.0))
        low = tl.dot(weight, query_low, input_precision="ieee")
        high = tl.dot(weight, query_high, input_precision="ieee")
        place = out + row[:, None] * (HEADS * 2 * HALF) + head * 2 * HALF + tl.arange(0, HALF)[None]
        tl.store(place, (low * cos_low + high * sin_low).to(query_low.dtype), mask=inside[:, None])
        tl.store(place + HALF, (high * cos_high - low * sin_high).to(query_low.dtype), mask=inside[:, None])
