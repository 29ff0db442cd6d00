"""Text backbones that cannot be taken apart, or whose prefixes would not be a sample's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trio_ray.errors import ModelError
from trio_ray.model.decoder import Decoder
from trio_ray.model.matrix import apply
from trio_ray.model.replica import Replica


def test_rotary_tables_that_depend_on_the_batch_are_refused(llama: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = llama.model.model.language_model  # type: ignore[union-attr]
    monkeypatch.setattr(language_model.rotary_emb, "rope_type", "longrope")  # type: ignore[union-attr, arg-type]
    with pytest.raises(ModelError, match="longrope"):
        Decoder.of(language_model, llama.model.lm_head)  # type: ignore[arg-type]


def test_projections_that_read_the_same_rows_are_one_matrix_that_the_model_shares(replica: Replica) -> None:
    """Nothing is held twice, taking the model apart again copies nothing, and its own layers compute as before."""
    language_model: Any = replica.model.model.language_model  # type: ignore[union-attr]
    again = Decoder.of(language_model, replica.model.lm_head)  # type: ignore[arg-type]
    for layer, weights, same in zip(language_model.layers, replica.decoder.weights, again.weights, strict=True):
        block = layer.self_attn
        assert weights.qkv.weight.data_ptr() == same.qkv.weight.data_ptr() == block.q_proj.weight.data_ptr()
        hidden = torch.randn(3, weights.qkv.weight.shape[1])
        parts = [linear(hidden) for linear in (block.q_proj, block.k_proj, block.v_proj)]
        torch.testing.assert_close(apply(hidden, weights.qkv), torch.cat(parts, 1))
        storages = {linear.weight.untyped_storage().data_ptr() for linear in (layer.mlp.gate_proj, layer.mlp.up_proj)}
        assert storages == {weights.gate_up.weight.untyped_storage().data_ptr()}
