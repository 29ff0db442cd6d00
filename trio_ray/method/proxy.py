"""The decoder layer whose own prediction judges the tokens, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProxyLayer:
    """The layer-local proxy of TRIO: one pre-norm decoder layer, then the model's final norm and `lm_head`.

    Attributes:
        norm_weight: (d,) weight of the layer's input RMSNorm.
        norm_eps: its epsilon.
        q_weight, k_weight, v_weight: (heads * D, d), (kv_heads * D, d), (kv_heads * D, d).
        q_bias, k_bias, v_bias: biases of the same leading size, or None.
        head_dim: D.
        scaling: factor on the attention scores, usually D ** -0.5.
        cos, sin: (T, D) rotary tables of the packed rows.
        finish: (n, heads * D) attention output and (n, d) residual -> (n, vocabulary) logits; differentiable.
    """

    norm_weight: Tensor
    norm_eps: float
    q_weight: Tensor
    k_weight: Tensor
    v_weight: Tensor
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    head_dim: int
    scaling: float
    cos: Tensor
    sin: Tensor
    finish: Callable[[Tensor, Tensor], Tensor]

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.q_weight.shape[0] // self.head_dim

    @property
    def kv_heads(self) -> int:
        """Key and value heads; each serves heads / kv_heads query heads."""
        return self.k_weight.shape[0] // self.head_dim


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout. `x` (..., n, heads, D); `cos`, `sin` (..., n, D).

    It is linear in x with a transpose of its own kind: `rotate(g, cos, -sin)` carries a gradient back.
    """
    low, high = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(-2) + torch.cat((-high, low), dim=-1) * sin.unsqueeze(-2)


def rms_norm(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, statistics in fp32, as the Llama family computes it."""
    wide = h.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(h.dtype)


def rms_norm_backward(grad: Tensor, h: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gradient at `h` of `rms_norm`, given the gradient at its output; fp32, same shape."""
    wide = h.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    weighted = grad.float() * weight.float()
    return scale * (weighted - wide * scale.square() * (weighted * wide).mean(-1, keepdim=True))
