"""The decoder of a Hugging Face model, taken apart into the steps that packed rows need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trio_ray.errors import ModelError
from trio_ray.method.proxy import ProxyLayer, rms_norm, rotate
from trio_ray.model.matrix import Matrix, apply
from trio_ray.tensors import fused

FAMILIES = ("llama", "mistral", "qwen2")
"""Text backbones whose layers are the pre-norm Llama block that this module takes apart."""


@dataclass(frozen=True)
class Decoder:
    """The parts of a causal language model of the Llama family. Weights are shared with it, never held twice.

    Attributes:
        layers: the decoder layers, as Hugging Face has them.
        weights: what each of them is run with.
        norm: the final norm.
        head: `lm_head`.
        embed: the token embedding.
        rotary: module that makes the rotary tables.
        heads, kv_heads, head_dim: shape of the attention.
        context: longest sequence that the positions (or a sliding window) allow.
    """

    layers: nn.ModuleList
    weights: tuple[LayerWeights, ...]
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
            ModelError: another architecture, or rotary tables that depend on what else is in the batch.
        """
        config = language_model.config
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"text backbone {config.model_type!r} is not supported; it must be one of {', '.join(FAMILIES)}"
            )
        if config.hidden_act != "silu":
            raise ModelError(f"activation {config.hidden_act!r} is not supported; it must be 'silu'")
        if language_model.rotary_emb.rope_type == "longrope":
            raise ModelError("rope_type 'longrope' is not supported: a prefix would depend on the batch it was made in")
        window = getattr(config, "sliding_window", None)
        if not getattr(config, "use_sliding_window", True):
            window = None
        context = min(config.max_position_embeddings, window or config.max_position_embeddings)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            layers=language_model.layers,
            weights=tuple(LayerWeights.of(layer) for layer in language_model.layers),
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

    def turned(self, keys: Tensor, steps: Tensor) -> Tensor:
        """(n, kv_heads, D) rotated keys, moved by (n,) int64 `steps` positions; in their own dtype."""
        scaling: Any = self.rotary.attention_scaling  # of some kinds of RoPE; the keys have it already
        cos, sin = self.tables(keys.float(), steps)
        return rotate(keys.float(), cos / scaling, sin / scaling).to(keys.dtype)

    def run_layer(
        self,
        number: int,
        hidden: Tensor,
        tables: tuple[Tensor, Tensor],
        attend: Callable[[Tensor, Tensor, Tensor, float], Tensor],
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """One layer over (n, d) rows.

        Its keys, rotated, and values are written into `keys` and `values`, (n, kv_heads, D) each; then
        `attend(query, keys, values, scale)` makes (n, heads, D) of them and the (n, heads, D) queries.
        """
        weights = self.weights[number]
        query = _enter_layer(hidden, *tables, keys, values, weights)
        out = attend(query, keys, values, weights.scaling)
        return _finish_layer(out.flatten(1), hidden, weights)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, d) last hidden states -> (n, vocabulary)."""
        return self.head(self.norm(hidden))

    def proxy(self, number: int, tables: tuple[Tensor, Tensor]) -> ProxyLayer:
        """Layer `number` as TRIO's layer-local proxy, with the rotary tables of the packed rows."""
        layer: Any = self.layers[number]
        block, weights = layer.self_attn, LayerWeights.of(layer)
        return ProxyLayer(
            norm_weight=weights.input_norm,
            norm_eps=weights.eps,
            q_weight=block.q_proj.weight,
            k_weight=block.k_proj.weight,
            v_weight=block.v_proj.weight,
            q_bias=block.q_proj.bias,
            k_bias=block.k_proj.bias,
            v_bias=block.v_proj.bias,
            head_dim=self.head_dim,
            scaling=weights.scaling,
            cos=tables[0],
            sin=tables[1],
            finish=lambda out, residual: self.logits(_finish_layer(out, residual, weights)),
        )

    def in_fp8(self) -> Decoder:
        """The same with the layers' matrix products in 8 bit floats. The proxies, which need gradients, stay as they
        are.
        """
        return replace(self, weights=tuple(weights.in_fp8() for weights in self.weights))


class LayerWeights(NamedTuple):
    """What one decoder layer computes with.

    A tuple of tensors rather than the module: a compiled function can check it in no time at every call.

    Attributes:
        qkv: the query, key and value projections, one below the other: one matrix product instead of three.
        gate_up: the gate and up projections, likewise.
    """

    input_norm: Tensor
    qkv: Matrix
    output: Matrix
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix
    eps: float
    scaling: float

    @classmethod
    def of(cls, layer: Any) -> LayerWeights:
        """The weights of a Hugging Face layer of the Llama family, shared with it (see `Matrix.joined`)."""
        block, mlp = layer.self_attn, layer.mlp
        return cls(
            input_norm=layer.input_layernorm.weight,
            qkv=Matrix.joined((block.q_proj, block.k_proj, block.v_proj)),
            output=Matrix.of(block.o_proj),
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=Matrix.joined((mlp.gate_proj, mlp.up_proj)),
            down=Matrix.of(mlp.down_proj),
            eps=layer.input_layernorm.variance_epsilon,
            scaling=block.scaling,
        )

    def in_fp8(self) -> LayerWeights:
        """The same with its matrices in 8 bit floats."""
        return self._replace(
            qkv=self.qkv.in_fp8(), output=self.output.in_fp8(), gate_up=self.gate_up.in_fp8(), down=self.down.in_fp8()
        )


@fused(hidden=(0,), cos=(0,), sin=(0,), keys=(0,), values=(0,))
def _enter_layer(
    hidden: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, weights: LayerWeights
) -> Tensor:
    """(n, heads, D) rotated queries of (n, d) rows; writes keys and values where they are to be kept."""
    kv_heads, dim = keys.shape[-2:]
    projected = apply(rms_norm(hidden, weights.input_norm, weights.eps), weights.qkv).unflatten(1, (-1, dim))
    query, key, value = projected.split([projected.shape[1] - 2 * kv_heads, kv_heads, kv_heads], 1)
    keys.copy_(rotate(key, cos, sin))
    values.copy_(value)
    return rotate(query, cos, sin)


@fused(out=(0,), residual=(0,))
def _finish_layer(out: Tensor, residual: Tensor, weights: LayerWeights) -> Tensor:
    """(n, d) output of a layer from its attention's (n, heads * D) output."""
    hidden = residual + apply(out, weights.output)
    gate, up = apply(rms_norm(hidden, weights.mlp_norm, weights.eps), weights.gate_up).chunk(2, 1)
    return hidden + apply(F.silu(gate) * up, weights.down)


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, and no weight gathers a gradient while the proxy differentiates."""
    return model.eval().requires_grad_(False)


def default_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
