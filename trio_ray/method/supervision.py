"""Attention of a few chosen rows of each sample over all of its rows, for a whole packed batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.proxy import ProxyLayer, rotate
from trio_ray.method.rows import PackedRows
from trio_ray.tensors import fused, has_triton, on_device


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
        """The target rows with these negative numbers, which count from each sample's end."""
        flat, weight = [], []
        for start, length in zip(rows.offsets, rows.lengths, strict=False):
            inside = [length + row >= 0 for row in from_end]
            flat += [start + max(0, length + row) for row in from_end]
            weight += [1.0 / sum(inside) if ok else 0.0 for ok in inside]
        return cls(on_device(flat, rows.device), on_device(weight, rows.device, torch.float32), len(from_end))


@dataclass(frozen=True)
class TargetAttention:
    """Attention of the target rows. M = (heads / kv_heads) * P rows of a sample share a key head; S is the longest
    sample.

    `probs` (B, kv_heads, M, S) fp32; `query` (B, kv_heads, M, D), rotated; `key` (T, kv_heads * D), before rotation.
    """

    probs: Tensor
    query: Tensor
    key: Tensor


def attend_from(normed: Tensor, rows: PackedRows, proxy: ProxyLayer, target: TargetRows) -> TargetAttention:
    """Causal attention of the target rows in the proxy layer, from (T, d) normed hidden states."""
    batch, per_sample, dim = len(rows.lengths), target.per_sample, proxy.head_dim
    slots, real = rows.padded
    key = F.linear(normed, proxy.k_weight, proxy.k_bias)
    query = F.linear(normed[target.flat], proxy.q_weight, proxy.q_bias).view(-1, proxy.heads, dim)
    query = group_heads(rotate(query, proxy.cos[target.flat], proxy.sin[target.flat]), proxy, target)
    visible = real[:, None] & (slots[:, None] <= target.flat.view(batch, per_sample, 1))
    probs = _softmax(_scores(key, query, rows, proxy), visible, proxy.scaling)
    return TargetAttention(probs, query, key)


def _scores(key: Tensor, query: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
    """(B, kv_heads, M, S) scores; entries behind a sample's end have no meaning."""
    if _kernels_take(query):
        from trio_ray.method.kernels import supervision as supervision_kernels

        return supervision_kernels.scores(key, query, proxy.cos, proxy.sin, rows.cu_seqlens, rows.padded[0].shape[1])
    return query @ rotated_and_padded(key, rows, proxy).transpose(2, 3)


def key_gradient(grad_scores: Tensor, query: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
    """(T, kv_heads * D), the gradient at `TargetAttention.key`, from (B, kv_heads, M, S) at the scores."""
    if _kernels_take(query):
        from trio_ray.method.kernels import supervision as supervision_kernels

        return supervision_kernels.key_gradient(grad_scores, query, proxy.cos, proxy.sin, rows.cu_seqlens)
    rotated = grad_scores.transpose(2, 3) @ query
    return rotate(rotated.transpose(1, 2).flatten(0, 1)[rows.unpadded], proxy.cos, -proxy.sin).flatten(1)


def _kernels_take(query: Tensor) -> bool:
    """Whether `supervision_kernels` can work with these queries of `TargetAttention`."""
    if not has_triton(query.device):
        return False
    from trio_ray.method.kernels import supervision as supervision_kernels

    return supervision_kernels.fit(query.shape[2], query.shape[3])


def rotated_and_padded(key: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
    """(T, kv_heads * D) packed keys as (B, kv_heads, S, D), rotated."""
    return _rotated_and_padded(key, proxy.cos, proxy.sin, rows.padded[0], proxy.head_dim)


@fused(key=(0,), cos=(0,), sin=(0,), slots=(0, 1))
def _rotated_and_padded(key: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, dim: int) -> Tensor:
    rotated = rotate(key.unflatten(1, (-1, dim)), cos, sin)
    return rotated[slots].transpose(1, 2).contiguous()


@fused(scores=(0, 3), visible=(0, 2))
def _softmax(scores: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """(B, kv_heads, M, S) fp32 probabilities, from scores in any dtype and a mask (B, P, S) of the rows that each
    target row sees.
    """
    batch, heads, _, length = scores.shape
    grouped = scores.unflatten(2, (-1, visible.shape[1])).float() * scaling
    probs = grouped.masked_fill(~visible[:, None, None], float("-inf")).softmax(-1)
    return probs.view(batch, heads, -1, length)


def group_heads(x: Tensor, proxy: ProxyLayer, target: TargetRows) -> Tensor:
    """(B * P, heads, D) -> (B, kv_heads, M, D): the rows that share a key head become one matrix."""
    return x.reshape(-1, target.per_sample, proxy.kv_heads, proxy.heads // proxy.kv_heads, proxy.head_dim).permute(
        0, 2, 3, 1, 4
    ).flatten(2, 3)  # fmt: skip


def ungroup_heads(x: Tensor, proxy: ProxyLayer, target: TargetRows) -> Tensor:
    """(B, kv_heads, M, D) -> (B * P, heads * D), the inverse of `group_heads` with the heads flattened."""
    return x.unflatten(2, (-1, target.per_sample)).permute(0, 3, 1, 2, 4).reshape(len(target.flat), -1)
