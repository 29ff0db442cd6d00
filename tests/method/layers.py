"""Small random causal language models of each supported family, for the method's tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.model.decoder import Decoder

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, 4),
    "llama_with_biases": (LlamaForCausalLM, LlamaConfig, 2),
    "mistral_grouped": (MistralForCausalLM, MistralConfig, 2),
    "qwen2_biases_one_kv_head": (Qwen2ForCausalLM, Qwen2Config, 1),
}
WIDTH = 48


def random_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Two layers, 4 query heads; weights wide enough that attention, norms and biases all matter."""
    torch.manual_seed(seed)
    build, configure, kv_heads = FAMILIES[family]
    extra = {"attention_bias": True, "mlp_bias": True} if family == "llama_with_biases" else {}
    model = build(
        configure(
            hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=60,
            num_key_value_heads=kv_heads, **extra,
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        mean = 1.0 if "norm" in name else 0.0
        torch.nn.init.normal_(parameter, mean, 0.3 if parameter.dim() == 1 else 1.4 / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval().requires_grad_(False)


def proxy_of(model: Any, hidden: Tensor, rows: PackedRows, layer: int = 1) -> ProxyLayer:
    """That model's layer as the proxy of packed rows."""
    decoder = Decoder.of(model.model, model.lm_head)
    return decoder.proxy(layer, decoder.tables(hidden, rows.position))
