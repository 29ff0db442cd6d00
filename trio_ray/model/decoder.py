"""The decoder of a Hugging Face model, taken apart into the steps that packed rows need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trio_ray.errors import ModelError
from trio_ray.method.proxy import ProxyLayer, rotate

FAMILIES = ("llama", "mistral", "qwen2")
"""Text backbones whose layers are the pre-norm Llama block that this module takes apart."""


@dataclass(frozen=True)
class Decoder:
    """Views into a causal language model of the Llama family; nothing is copied.

    Attributes:
        layers: the decoder layers.
        norm: the final norm.
        head: `lm_head`.
        embed: the token embedding.
        rotary: module that makes the rotary tables.
        heads, kv_heads, head_dim: shape of the attention.
        context: longest sequence that the positions (or a sliding window) allow.
    """

    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    embed: nn.Module
    rotary: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    context: int

    @classmethod
    def of(cls, language_model: Any, head: nn.Module) -> Decoder:
        """Take apart `language_model` (a `LlamaModel`, `MistralModel` or `Qwen2Model`) and its `lm_head`.

        Raises:
            ModelError: another architecture.
        """
        config = language_model.config
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"text backbone {config.model_type!r} is not supported; it must be one of {', '.join(FAMILIES)}"
            )
        window = getattr(config, "sliding_window", None)
        if not getattr(config, "use_sliding_window", True):
            window = None
        context = min(config.max_position_embeddings, window or config.max_position_embeddings)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            layers=language_model.layers,
            norm=language_model.norm,
            head=head,
            embed=language_model.embed_tokens,
            rotary=language_model.rotary_emb,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            context=context,
        )

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    def tables(self, hidden: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables (n, D) for positions (n,), in the dtype of `hidden`."""
        cos, sin = self.rotary(hidden, position[None])
        return cos[0], sin[0]

    def run_layer(
        self,
        number: int,
        hidden: Tensor,
        tables: tuple[Tensor, Tensor],
        attend: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    ) -> Tensor:
        """One layer over (n, d) rows. `attend(query, key, value, scale)` gets (n, heads, D) and twice (n, kv_heads,
        D).
        """
        layer: Any = self.layers[number]
        block = layer.self_attn
        normed = layer.input_layernorm(hidden)
        query, key, value = (
            projection(normed).view(len(hidden), -1, self.head_dim)
            for projection in (block.q_proj, block.k_proj, block.v_proj)
        )
        out = attend(rotate(query, *tables), rotate(key, *tables), value, block.scaling)
        return self._finish_layer(layer, out.flatten(1), hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, d) last hidden states -> (n, vocabulary)."""
        return self.head(self.norm(hidden))

    def proxy(self, number: int, tables: tuple[Tensor, Tensor]) -> ProxyLayer:
        """Layer `number` as TRIO's layer-local proxy, with the rotary tables of the packed rows."""
        layer: Any = self.layers[number]
        block = layer.self_attn
        return ProxyLayer(
            norm_weight=layer.input_layernorm.weight,
            norm_eps=layer.input_layernorm.variance_epsilon,
            q_weight=block.q_proj.weight,
            k_weight=block.k_proj.weight,
            v_weight=block.v_proj.weight,
            q_bias=block.q_proj.bias,
            k_bias=block.k_proj.bias,
            v_bias=block.v_proj.bias,
            head_dim=self.head_dim,
            scaling=block.scaling,
            cos=tables[0],
            sin=tables[1],
            finish=lambda out, residual: self.logits(self._finish_layer(layer, out, residual)),
        )

    @staticmethod
    def _finish_layer(layer: Any, out: Tensor, residual: Tensor) -> Tensor:
        hidden = residual + layer.self_attn.o_proj(out)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, and no weight gathers a gradient while the proxy differentiates."""
    return model.eval().requires_grad_(False)


def default_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
