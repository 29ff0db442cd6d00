"""Find, check and load a LLaVA-NeXT model from the bundle, a folder or the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import AutoTokenizer, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.model.decoder import FAMILIES, freeze
from trio_ray.model.random_weights import RANDOM_WEIGHTS_FILE, draw_model, read_seed

BUNDLED_FOLDER = Path(__file__).parent.parent / "bundled" / "tiny"
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, with the processor that belongs to it."""

    model: Any
    processor: Any
    image_processor: Any
    dtype: torch.dtype


def model_folder(config: ModelConfig) -> Path:
    """The local folder of a model; a hub name is resolved to its snapshot (downloaded if need be).

    Raises:
        ConfigError: there is no such folder or hub model; names `model.name`.
    """
    if config.name == BUNDLED_MODEL:
        return BUNDLED_FOLDER
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError("model.name", f"{folder} holds no config.json, so it is no model folder")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(config.name, revision=config.revision, allow_patterns=patterns))
    except HFValidationError:
        raise ConfigError("model.name", f"{config.name!r} is neither a folder nor a hub name") from None
    except Exception as error:  # the hub client raises errors of many libraries
        message = f"{config.name!r} is no folder here and could not be had from the hub ({type(error).__name__})"
        raise ConfigError("model.name", message) from None


def read_model_config(folder: Path) -> LlavaNextConfig:
    """The model's configuration, checked for what this package can run, before any weight is read.

    Raises:
        ConfigError: another architecture or an unreadable file; names `model.name`.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise ConfigError("model.name", f"{folder / 'config.json'} cannot be read: {error}") from None
    if kind != "llava_next":
        raise ConfigError("model.name", f"{folder} is a {kind!r} model; it must be 'llava_next'")
    config = LlavaNextConfig.from_pretrained(folder)
    text = config.get_text_config().model_type
    if text not in FAMILIES:
        raise ConfigError(
            "model.name", f"text backbone {text!r} is not supported; it must be one of {', '.join(FAMILIES)}"
        )
    stored, drawn = any(folder.glob("*.safetensors")), (folder / RANDOM_WEIGHTS_FILE).is_file()
    if stored and drawn:
        raise ConfigError("model.name", f"{folder} holds both weights and {RANDOM_WEIGHTS_FILE}; remove one of them")
    if drawn:
        read_seed(folder)
    elif not stored:
        raise ConfigError("model.name", f"{folder} holds no *.safetensors weights")
    return config


def resolve_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The arithmetic of a replica: 'auto' is bfloat16 on a GPU and float32 on a CPU."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, wanted)


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Load or draw weights, and load the processor, its PIL class by name, so that every machine gives the same
    pixels.
    """
    if (folder / RANDOM_WEIGHTS_FILE).is_file():
        model = draw_model(folder, dtype, device)
    else:
        model = LlavaNextForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
        )
    processor, image_processor = load_processor(folder)
    return LoadedModel(freeze(model.to(device)), processor, image_processor, dtype)


def load_processor(folder: Path) -> tuple[Any, Any]:
    """A model's processor and its image processor."""
    image_processor = LlavaNextImageProcessorPil.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    processor = LlavaNextProcessor.from_pretrained(
        folder, image_processor=image_processor, tokenizer=tokenizer, local_files_only=True
    )
    return processor, image_processor


def model_fingerprint(folder: Path) -> dict[str, str]:
    """xxh3-128 of a model's files by what they are for: weights, architecture, processor, tokenizer.

    Weights are hashed whole: names and sizes alone do not tell two fine-tuned revisions apart.

    Raises:
        ConfigError: a file cannot be read; names `model.name`.
    """
    weights = [*sorted(folder.glob("*.safetensors")), folder / RANDOM_WEIGHTS_FILE]
    return {
        "weights": _hash_files(weights),
        "config": _hash_files([folder / "config.json"]),
        "processor": _hash_files([folder / name for name in PROCESSOR_FILES]),
        "tokenizer": _hash_files([folder / name for name in TEXT_FILES]),
    }


def _hash_files(paths: list[Path]) -> str:
    digest = xxhash.xxh3_128()
    for path in paths:
        if not path.is_file():
            continue
        try:
            digest.update(path.name.encode() + b"\0" + str(path.stat().st_size).encode() + b"\0")
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        except OSError as error:
            raise ConfigError("model.name", f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
