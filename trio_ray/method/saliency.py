"""TRIO's saliency: the gradient norm of a layer-local proxy loss, in closed form for all samples of a batch.

Only the few supervised rows carry loss, and a row before them reaches it through its key and value alone. So the exact
gradient needs, for all rows, the input norm and `k_proj`; the rest of the layer, the final norm and `lm_head` run on the
supervised rows alone. Values are never formed: attention averages the normed rows first and projects the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.proxy import ProxyLayer, rms_norm, rms_norm_backward, rotate
from trio_ray.method.rows import PackedRows

LOSS_SCALE = 1024.0
"""Factor on the loss, so that half-precision gradients do not underflow; divided out again at the end, in fp32."""


def proxy_saliency(hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, supervised: Sequence[int]) -> Tensor:
    """L2 norm, for each row, of the gradient of the proxy loss at the row's hidden state.

    The pseudo-label of a supervised row is the argmax of its own logits; a sample's loss is the mean cross-entropy over its
    supervised rows (arXiv 2602.04657, released code). Equal to autograd through the whole layer up to rounding.

    Args:
        hidden: (T, d) the packed output of the layers before the proxy, any float dtype.
        rows: layout of the T rows.
        proxy: the next decoder layer.
        supervised: negative row numbers from each sample's end; those before its start are left out.

    Returns:
        (T,) fp32. Rows behind a sample's last supervised row have 0.
    """
    hidden = hidden.detach()
    target = _supervised_rows(rows, supervised)
    normed = rms_norm(hidden, proxy.norm_weight, proxy.norm_eps)
    attention = _attend(normed, rows, proxy, target)
    grad_out, grad_residual = _loss_gradient(hidden, proxy, target, attention.out)
    grad_scores, grad_normed = _attention_gradient(normed, rows, proxy, attention, grad_out)
    reaches_images = any(-row > tail for row in supervised for tail in rows.tails)
    if reaches_images:
        # A supervised image row also acts through its own query and residual.
        grad_normed = grad_normed.index_add(0, target.flat, _query_gradient(proxy, attention, target, grad_scores))
    grad = rms_norm_backward(grad_normed, hidden, proxy.norm_weight, proxy.norm_eps)
    if reaches_images:
        grad = grad.index_add(0, target.flat, grad_residual.float())
    return torch.linalg.vector_norm(grad, dim=-1) / LOSS_SCALE


@dataclass(frozen=True)
class _Target:
    """The supervised rows of a batch: `flat` (B * P,) row numbers and `weight` (B * P,) fp32, 0 for rows left out."""

    flat: Tensor
    weight: Tensor
    per_sample: int


@dataclass(frozen=True)
class _Attention:
    """Attention of the supervised rows. M = (heads / kv_heads) * P rows share a key head of a sample.

    `probs` (B, kv_heads, M, S) fp32; `query` (B, kv_heads, M, D); `key` (B, kv_heads, S, D); `value` (B, kv_heads, M, D)
    the attended values, without bias; `out` (B * P, heads * D) what `o_proj` gets.
    """

    probs: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


def _supervised_rows(rows: PackedRows, supervised: Sequence[int]) -> _Target:
    flat, weight = [], []
    for start, length in zip(rows.offsets, rows.lengths, strict=False):
        inside = [length + row >= 0 for row in supervised]
        flat += [start + max(0, length + row) for row in supervised]
        weight += [1.0 / max(1, sum(inside)) if ok else 0.0 for ok in inside]
    return _Target(
        torch.tensor(flat, device=rows.device), torch.tensor(weight, device=rows.device), len(supervised)
    )


def _attend(normed: Tensor, rows: PackedRows, proxy: ProxyLayer, target: _Target) -> _Attention:
    batch, per_sample, dim = len(rows.lengths), target.per_sample, proxy.head_dim
    group = proxy.heads // proxy.kv_heads
    key = F.linear(normed, proxy.k_weight, proxy.k_bias).view(-1, proxy.kv_heads, dim)
    key = rotate(key, proxy.cos, proxy.sin)
    query = F.linear(normed[target.flat], proxy.q_weight, proxy.q_bias).view(-1, proxy.heads, dim)
    query = rotate(query, proxy.cos[target.flat], proxy.sin[target.flat])
    # (B, P, kv_heads, group, D) -> (B, kv_heads, group * P, D): the rows that share a key head become one matrix.
    query = query.view(batch, per_sample, proxy.kv_heads, group, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    slots, real = rows.padded
    key = key[slots].transpose(1, 2)
    scores = (query @ key.transpose(2, 3)).float() * proxy.scaling
    visible = real[:, None] & (slots[:, None] <= target.flat.view(batch, per_sample, 1))
    probs = scores.masked_fill(~visible.repeat(1, group, 1)[:, None], float("-inf")).softmax(-1)
    padded = normed[slots]
    mean = (probs.flatten(1, 2).to(padded.dtype) @ padded).unflatten(1, (proxy.kv_heads, -1))
    value = mean @ proxy.v_weight.view(proxy.kv_heads, dim, -1).transpose(1, 2)
    out = value if proxy.v_bias is None else value + proxy.v_bias.view(proxy.kv_heads, 1, dim)
    out = out.unflatten(2, (group, per_sample)).permute(0, 3, 1, 2, 4).reshape(batch * per_sample, -1)
    return _Attention(probs, query, key, value, out)


def _loss_gradient(hidden: Tensor, proxy: ProxyLayer, target: _Target, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the scaled loss, summed over samples, at the attention output and at the residual, of the target rows."""
    with torch.enable_grad():
        out = out.detach().requires_grad_()
        residual = hidden[target.flat].detach().requires_grad_()
        logits = proxy.finish(out, residual).float()
        loss = F.cross_entropy(logits, logits.detach().argmax(-1), reduction="none")
        grads = torch.autograd.grad((loss * target.weight).sum() * LOSS_SCALE, (out, residual))
    return grads[0], grads[1]


def _attention_gradient(
    normed: Tensor, rows: PackedRows, proxy: ProxyLayer, attention: _Attention, grad_out: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients at the scores, (B, kv_heads, M, S), and at all normed rows by way of keys and values, (T, d)."""
    batch, dim, dtype = len(rows.lengths), proxy.head_dim, normed.dtype
    group = proxy.heads // proxy.kv_heads
    padded = normed[rows.padded[0]]
    grad_out = grad_out.view(batch, -1, proxy.kv_heads, group, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    # dL/dA_ij = dO_i . v_j = (W_v^T dO_i) . x_j, so the values stay unformed here too.
    back = grad_out @ proxy.v_weight.view(proxy.kv_heads, dim, -1)
    grad_probs = (back.flatten(1, 2) @ padded.transpose(1, 2)).unflatten(1, (proxy.kv_heads, -1)).float()
    mean_grad = (grad_out.float() * attention.value.float()).sum(-1, keepdim=True)
    grad_scores = (attention.probs * (grad_probs - mean_grad) * proxy.scaling).to(dtype)
    flat = _unpad_index(rows)
    grad_key = (grad_scores.transpose(2, 3) @ attention.query).transpose(1, 2).flatten(0, 1)[flat]
    grad_key = rotate(grad_key, proxy.cos, -proxy.sin).flatten(1)
    weights = attention.probs.flatten(1, 2).to(dtype).transpose(1, 2)
    through_value = (weights @ back.flatten(1, 2)).flatten(0, 1)[flat]
    return grad_scores, grad_key @ proxy.k_weight + through_value


def _query_gradient(proxy: ProxyLayer, attention: _Attention, target: _Target, grad_scores: Tensor) -> Tensor:
    """Gradient at the target rows' normed states by way of their queries, (B * P, d)."""
    grad_query = (grad_scores @ attention.key).unflatten(2, (-1, target.per_sample))
    grad_query = grad_query.permute(0, 3, 1, 2, 4).reshape(len(target.flat), proxy.heads, proxy.head_dim)
    return rotate(grad_query, proxy.cos[target.flat], -proxy.sin[target.flat]).flatten(1) @ proxy.q_weight


def _unpad_index(rows: PackedRows) -> Tensor:
    """(T,) int64: where each row stands in a padded (B, S) layout, flattened."""
    first = torch.tensor(rows.offsets[:-1], device=rows.device)
    width = max(rows.lengths)
    return rows.sample * width + torch.arange(rows.total, device=rows.device) - first[rows.sample]
