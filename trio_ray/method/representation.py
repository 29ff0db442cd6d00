"""Kept image rows that weigh in attention as much as all rows that they stand for.

A query divides its attention between the text and the image. Where most image rows are dropped, the image as a whole
weighs less, and what a layer computes from its share changes, whichever rows are kept. Here the keys of the kept rows
are moved along the mean query of the rows behind the image, until it gives each of them the weight of as many equal
rows as were there. Nothing but keys changes, so whatever reads a cache needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from trio_ray.method.rows import PackedRows
from trio_ray.tensors import on_device


def mean_tail_queries(query: Tensor, rows: PackedRows, kv_heads: int) -> Tensor:
    """(B, kv_heads, D) fp32 mean over each sample's rows behind its last image row, and over the heads that read the
    same keys; 0 for a sample without such rows.

    Args:
        query: (T, heads, D) rotated queries of a layer.
        rows: their layout.
        kv_heads: heads of the keys.
    """
    places = rows.tail_rows
    grouped = query[places].float().unflatten(1, (kv_heads, -1)).mean(2)
    sums = grouped.new_zeros(len(rows.lengths), *grouped.shape[1:]).index_add_(0, rows.sample[places], grouped)
    return sums / on_device([max(1, tail) for tail in rows.tails], query.device)[:, None, None]


def represent_dropped(
    keys: Tensor, left: PackedRows, image_tokens: Sequence[int], queries: Tensor, scale: float
) -> None:
    """Move the keys of image rows, in place.

    Args:
        keys: (T', kv_heads, D) rotated keys of the rows that are left.
        left: their layout.
        image_tokens: of each sample, before any was dropped.
        queries: (B, kv_heads, D) of `mean_tail_queries`, as they are turned where the tail's rows are.
        scale: that the layer's attention multiplies products of queries and keys by.
    """
    weights = [
        log(tokens / kept) if kept else 0.0 for tokens, kept in zip(image_tokens, left.image_counts, strict=True)
    ]
    wanted = on_device(weights, keys.device, torch.float32)[:, None, None] / scale
    shift = queries * wanted / queries.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    places = left.image_rows
    keys.index_copy_(0, places, (keys[places].float() + shift[left.sample[places]]).to(keys.dtype))
