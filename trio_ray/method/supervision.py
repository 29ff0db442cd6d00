"""Attention of a few chosen rows of each sample over all of its rows, for a whole packed batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.proxy import ProxyLayer, rotate
from trio_ray.method.rows import PackedRows


@dataclass(frozen=True)
class TargetRows:
    """P rows of each of B samples: `flat` (B * P,) row numbers, `weight` (B * P,) fp32.

    A sample's weights add up to 1; a row that would lie before the sample's start has weight 0.
    """

    flat: Tensor
    weight: Tensor
    per_sample: int

    @classmethod
    def of(cls, rows: PackedRows, from_end: Sequence[int]) -> TargetRows:
        """The rows with these negative numbers, counted from each sample's end."""
        flat, weight = [], []
        for start, length in zip(rows.offsets, rows.lengths, strict=False):
            inside = [length + row >= 0 for row in from_end]
            flat += [start + max(0, length + row) for row in from_end]
            weight += [1.0 / sum(inside) if ok else 0.0 for ok in inside]
        return cls(torch.tensor(flat, device=rows.device), torch.tensor(weight, device=rows.device), len(from_end))


@dataclass(frozen=True)
class TargetAttention:
    """Attention of the target rows. M = (heads / kv_heads) * P rows of a sample share a key head; S is the longest
    sample.

    `probs` (B, kv_heads, M, S) fp32; `query` (B, kv_heads, M, D); `key` (B, kv_heads, S, D).
    """

    probs: Tensor
    query: Tensor
    key: Tensor


def attend_from(normed: Tensor, rows: PackedRows, proxy: ProxyLayer, target: TargetRows) -> TargetAttention:
    """Causal attention of the target rows in the proxy layer, from (T, d) normed hidden states."""
    batch, per_sample, dim = len(rows.lengths), target.per_sample, proxy.head_dim
    group = proxy.heads // proxy.kv_heads
    key = F.linear(normed, proxy.k_weight, proxy.k_bias).view(-1, proxy.kv_heads, dim)
    key = rotate(key, proxy.cos, proxy.sin)
    query = F.linear(normed[target.flat], proxy.q_weight, proxy.q_bias).view(-1, proxy.heads, dim)
    query = group_heads(rotate(query, proxy.cos[target.flat], proxy.sin[target.flat]), proxy, target)
    slots, real = rows.padded
    key = key[slots].transpose(1, 2)
    scores = (query @ key.transpose(2, 3)).float() * proxy.scaling
    visible = real[:, None] & (slots[:, None] <= target.flat.view(batch, per_sample, 1))
    probs = scores.masked_fill(~visible.repeat(1, group, 1)[:, None], float("-inf")).softmax(-1)
    return TargetAttention(probs, query, key)


def group_heads(x: Tensor, proxy: ProxyLayer, target: TargetRows) -> Tensor:
    """(B * P, heads, D) -> (B, kv_heads, M, D): the rows that share a key head become one matrix."""
    return x.reshape(-1, target.per_sample, proxy.kv_heads, proxy.heads // proxy.kv_heads, proxy.head_dim).permute(
        0, 2, 3, 1, 4
    ).flatten(2, 3)  # fmt: skip


def ungroup_heads(x: Tensor, proxy: ProxyLayer, target: TargetRows) -> Tensor:
    """(B, kv_heads, M, D) -> (B * P, heads * D), the inverse of `group_heads` with the heads flattened."""
    return x.unflatten(2, (-1, target.per_sample)).permute(0, 3, 1, 2, 4).reshape(len(target.flat), -1)
