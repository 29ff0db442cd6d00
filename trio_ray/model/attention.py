"""Causal attention of a prefill over packed rows: the fastest kernel that is installed, else SDPA sample by sample."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.errors import ConfigError
from trio_ray.method.rows import PackedRows

Backend = Literal["fa3", "flash_attn", "varlen", "sdpa"]
FASTEST_FIRST: tuple[Backend, ...] = ("fa3", "flash_attn", "varlen", "sdpa")
"""What `auto` tries, in this order. Milliseconds of a packed prefill's attention on one H200 (32 heads, head_dim 128,
bfloat16; flash-attn 2.8.3, 29 November 2026):

| rows of the samples | fa3 | flash_attn | varlen | sdpa |
|---|---|---|---|---|
| 8 of 2,940 | 1.03 | 1.70 | 1.84 | 1.35 |
| 16 of 200 to 2,825 | 0.83 | 1.33 | 1.63 | 1.37 |
| 32 of 300 | 0.24 | 0.29 | 0.35 | 1.67 |

SDPA wins over flash_attn and varlen for a few long samples, and loses by far behind the first prune point, where most
layers are.
"""
PackedAttention = Callable[[Tensor, Tensor, Tensor, PackedRows, float], Tensor]
"""(T, heads, D) queries, (T, kv_heads, D) keys and values, layout, score factor -> (T, heads, D)."""

HALF = (torch.bfloat16, torch.float16)


def choose_backend(wanted: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The attention backend for a replica.

    Raises:
        ConfigError: a backend was asked for that is not installed, or cannot run on this device or dtype.
    """
    if wanted == "auto":
        return next(name for name in FASTEST_FIRST if not _why_not(name, device, dtype))
    reason = _why_not(wanted, device, dtype)
    if reason:
        raise ConfigError("model.attention", f"{wanted} cannot be used: {reason}")
    return wanted  # type: ignore[return-value]


def packed_attention(backend: Backend) -> PackedAttention:
    """The function behind a backend's name."""
    return {"flash_attn": _flash_attn, "fa3": _fa3, "varlen": _varlen, "sdpa": _sdpa}[backend]


def _why_not(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run here, or None."""
    if backend == "sdpa":
        return None
    module = {"flash_attn": "flash_attn", "fa3": "fa3_fwd_interface", "varlen": "torch.nn.attention.varlen"}[backend]
    if device.type != "cuda":
        return "it needs a CUDA device"
    if dtype not in HALF:
        return f"it needs bfloat16 or float16, not {dtype}"
    if importlib.util.find_spec(module) is None:
        return f"the module {module} is not installed"
    if backend == "fa3" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    return None


def _sdpa(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, scale: float) -> Tensor:
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    out = torch.empty_like(query)
    for start, stop in pairwise(rows.offsets):
        q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (query, key, value))
        result = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        out[start:stop] = result[0].transpose(0, 1)
    return out


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, scale: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    longest, edges = max(rows.lengths), rows.cu_seqlens
    return flash_attn_varlen_func(query, key, value, edges, edges, longest, longest, softmax_scale=scale, causal=True)


def _fa3(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, scale: float) -> Tensor:
    from fa3_fwd_interface import flash_attn_varlen_func

    longest, edges = max(rows.lengths), rows.cu_seqlens
    result = flash_attn_varlen_func(
        query,
        key,
        value,
        edges,
        edges,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=True,
    )
    return result[0] if isinstance(result, tuple) else result


def _varlen(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    group = query.shape[1] // key.shape[1]
    if group > 1:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11 has no grouped heads here
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    longest, edges = max(rows.lengths), rows.cu_seqlens
    return cast(
        Tensor,
        varlen_attn(query, key, value, edges, edges, longest, longest, scale=scale, window_size=(-1, 0), **options),
    )
