"""TRIO's saliency: the gradient norm of a layer-local proxy loss, in closed form for all samples of a batch.

Only the few supervised rows carry loss, and a row before them reaches it through its key and value alone. So the exact
gradient needs, for all rows, the input norm and `k_proj`; the rest of the layer, the final norm and `lm_head` run on
the supervised rows alone. Values are never formed: attention averages the normed rows first and projects the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.proxy import ProxyLayer, rms_norm, rms_norm_backward, rotate
from trio_ray.method.rows import PackedRows
from trio_ray.method.supervision import (
    TargetAttention,
    TargetRows,
    attend_from,
    group_heads,
    key_gradient,
    rotated_and_padded,
    ungroup_heads,
)
from trio_ray.tensors import fused

LOSS_SCALE = 1024.0
"""Factor on the loss, so that half-precision gradients do not underflow; divided out again at the end, in fp32."""


def proxy_saliency(
    hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, supervised: Sequence[int], balanced: bool = False
) -> Tensor:
    """L2 norm, for each row, of the gradient of the proxy loss at the row's hidden state.

    The pseudo-label of a supervised row is the argmax of its own logits; a sample's loss is the mean cross-entropy
    over its supervised rows (arXiv 2602.04657, released code). Equal to autograd through the whole layer up to
    rounding.

    Args:
        hidden: (T, d) the packed output of the layers before the proxy, any float dtype.
        rows: layout of the T rows.
        proxy: the next decoder layer.
        supervised: negative row numbers from each sample's end; those before its start are left out.
        balanced: scale each supervised row's loss so that its gradient at the attention output has length 1. A row
            whose prediction is nearly certain has almost no gradient, and would have no say.

    Returns:
        (T,) fp32, exact for image rows (a supervised text row's own residual is left out where no image row is
        supervised). Rows behind a sample's last supervised row have 0.
    """
    hidden = hidden.detach()
    target = TargetRows.of(rows, supervised)
    normed = _normed(hidden, proxy.norm_weight, proxy.norm_eps)
    attention = attend_from(normed, rows, proxy, target)
    padded = normed[rows.padded[0]]
    values = _attended_values(padded, proxy, target, attention)
    grad_out, grad_residual = _loss_gradient(hidden, proxy, target, values.out)
    if balanced:
        scale = LOSS_SCALE / torch.linalg.vector_norm(grad_out.float(), dim=-1, keepdim=True).clamp_min(1e-30)
        scale = scale * (target.weight > 0)[:, None]
        # In fp32 first: the factor of a nearly certain row does not fit into half precision, the product does.
        grad_out, grad_residual = (grad_out.float() * scale).to(grad_out.dtype), grad_residual.float() * scale
    through = _attention_gradient(padded, rows, proxy, target, attention, values, grad_out)
    if not any(-row > tail for row in supervised for tail in rows.tails):
        return _norm_of_gradient(through.key, through.value, rows.unpadded, hidden, proxy.norm_weight, proxy.norm_eps)
    # A supervised image row also acts through its own query and residual.
    grad_normed = (through.key + through.value[rows.unpadded]).index_add(
        0, target.flat, _query_gradient(proxy, rows, attention, target, through.scores)
    )
    grad = rms_norm_backward(grad_normed, hidden, proxy.norm_weight, proxy.norm_eps)
    grad = grad.index_add(0, target.flat, grad_residual.float())
    return torch.linalg.vector_norm(grad, dim=-1) / LOSS_SCALE


@fused(hidden=(0,))
def _normed(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(hidden, weight, eps)


@fused(through_key=(0,), through_value=(0,), flat=(0,), hidden=(0,))
def _norm_of_gradient(
    through_key: Tensor, through_value: Tensor, flat: Tensor, hidden: Tensor, weight: Tensor, eps: float
) -> Tensor:
    """(T,) fp32, from the gradient behind the input norm (`_Through`); one pass that never writes the gradient before
    it, nor the sum.
    """
    grad = through_key.float() + through_value[flat].float()
    return torch.linalg.vector_norm(rms_norm_backward(grad, hidden, weight, eps), dim=-1) / LOSS_SCALE


@dataclass(frozen=True)
class _Values:
    """`weights` (B, kv_heads * M, S), the probabilities in the dtype of the states; `attended` (B, kv_heads, M, D),
    without bias; `out` (B * P, heads * D), what `o_proj` gets.
    """

    weights: Tensor
    attended: Tensor
    out: Tensor


def _attended_values(padded: Tensor, proxy: ProxyLayer, target: TargetRows, attention: TargetAttention) -> _Values:
    """Average the normed rows, (B, S, d), first, then project the average: the values of all rows are never formed."""
    weights = attention.probs.flatten(1, 2).to(padded.dtype)
    mean = (weights @ padded).unflatten(1, (proxy.kv_heads, -1))
    attended = _by_head(mean, proxy.v_weight.view(proxy.kv_heads, proxy.head_dim, -1).transpose(1, 2))
    out = attended if proxy.v_bias is None else attended + proxy.v_bias.view(proxy.kv_heads, 1, proxy.head_dim)
    return _Values(weights, attended, ungroup_heads(out, proxy, target))


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """(B, kv_heads, M, a) @ (kv_heads, a, b); `matmul` itself would copy the weight once for each sample."""
    batch, heads, count, _ = x.shape
    product = x.transpose(0, 1).reshape(heads, batch * count, -1) @ weight
    return product.unflatten(1, (batch, count)).transpose(0, 1)


def _loss_gradient(hidden: Tensor, proxy: ProxyLayer, target: TargetRows, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the scaled loss, summed over samples, at the attention output and at the residual of the target
    rows.
    """
    with torch.enable_grad():
        out = out.detach().requires_grad_()
        residual = hidden[target.flat].detach().requires_grad_()
        logits = proxy.finish(out, residual).float()
        loss = F.cross_entropy(logits, logits.detach().argmax(-1), reduction="none")
        grads = torch.autograd.grad((loss * target.weight).sum() * LOSS_SCALE, (out, residual))
    return grads[0], grads[1]


@dataclass(frozen=True)
class _Through:
    """Gradients at the scores, (B, kv_heads, M, S), and at the normed rows: by way of keys, (T, d), and of values,
    (B * S, d).
    """

    scores: Tensor
    key: Tensor
    value: Tensor


def _attention_gradient(
    padded: Tensor,
    rows: PackedRows,
    proxy: ProxyLayer,
    target: TargetRows,
    attention: TargetAttention,
    values: _Values,
    grad_out: Tensor,
) -> _Through:
    grad_out = group_heads(grad_out, proxy, target)
    # dL/dA_ij = dO_i . v_j = (W_v^T dO_i) . x_j, so the values stay unformed here too.
    back = _by_head(grad_out, proxy.v_weight.view(proxy.kv_heads, proxy.head_dim, -1)).flatten(1, 2)
    grad_probs = (back @ padded.transpose(1, 2)).unflatten(1, (proxy.kv_heads, -1))
    mean_grad = (grad_out.float() * values.attended.float()).sum(-1, keepdim=True)
    grad_scores = _score_gradient(attention.probs, grad_probs, mean_grad, proxy.scaling)
    grad_key = key_gradient(grad_scores, attention.query, rows, proxy)
    through_value = (values.weights.transpose(1, 2) @ back).flatten(0, 1)
    return _Through(grad_scores, grad_key @ proxy.k_weight, through_value)


@fused(probs=(0, 3), grad_probs=(0, 3), mean_grad=(0,))
def _score_gradient(probs: Tensor, grad_probs: Tensor, mean_grad: Tensor, scaling: float) -> Tensor:
    """Backward of the softmax, in the dtype of `grad_probs`."""
    return (probs * (grad_probs.float() - mean_grad) * scaling).to(grad_probs.dtype)


def _query_gradient(
    proxy: ProxyLayer, rows: PackedRows, attention: TargetAttention, target: TargetRows, grad_scores: Tensor
) -> Tensor:
    """Gradient at the target rows' normed states by way of their queries, (B * P, d)."""
    grad_query = grad_scores @ rotated_and_padded(attention.key, rows, proxy)
    grad_query = ungroup_heads(grad_query, proxy, target).unflatten(1, (proxy.heads, proxy.head_dim))
    return rotate(grad_query, proxy.cos[target.flat], -proxy.sin[target.flat]).flatten(1) @ proxy.q_weight
