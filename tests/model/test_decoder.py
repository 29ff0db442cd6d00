"""Text backbones that cannot be taken apart, or whose prefixes would not be a sample's own."""

from __future__ import annotations

import pytest

from trio_ray.errors import ModelError
from trio_ray.model.decoder import Decoder
from trio_ray.model.replica import Replica


def test_rotary_tables_that_depend_on_the_batch_are_refused(llama: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = llama.model.model.language_model  # type: ignore[union-attr]
    monkeypatch.setattr(language_model.rotary_emb, "rope_type", "longrope")  # type: ignore[union-attr, arg-type]
    with pytest.raises(ModelError, match="longrope"):
        Decoder.of(language_model, llama.model.lm_head)  # type: ignore[arg-type]
