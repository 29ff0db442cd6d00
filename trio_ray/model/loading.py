"""Find a LLaVA-NeXT model (bundled, a folder, on the hub), read its files, load it, and hash its contents.

transformers takes seconds to import. Who reads a cache needs none of it, so it is imported where it is used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError, TrioRayError
from trio_ray.model.decoder import FAMILIES, freeze
from trio_ray.model.hub import download_model
from trio_ray.model.random_weights import RANDOM_WEIGHTS_FILE, draw_model, read_seed
from trio_ray.model.weights import hash_weights, refuse_lfs_pointer, weight_files

if TYPE_CHECKING:
    from transformers import LlavaNextConfig

BUNDLED_FOLDER = Path(__file__).parent.parent / "bundled" / "tiny"
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
SLOW_TEXT_FILES = ("tokenizer.model", "vocab.json", "merges.txt")
"""Files that are read only where there is no tokenizer.json."""
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
GENERATION_FILE = "generation_config.json"
NAMES_SHOWN = 4
_SHAPE_OF_MODEL = (
    "image_token_index", "projector_hidden_act", "vision_feature_select_strategy", "vision_feature_layer",
    "multimodal_projector_bias", "tie_word_embeddings", "image_grid_pinpoints",
)  # fmt: skip
_SHAPE_OF_VISION = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
_SHAPE_OF_TEXT = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_parameters", "max_position_embeddings",
    "sliding_window", "use_sliding_window", "max_window_layers", "attention_bias", "mlp_bias",
)  # fmt: skip
"""The settings of config.json that decide what a prefill computes. The file's other settings, and its defaults that are
written out or not, may differ between two copies of one model.
"""


def model_folder(config: ModelConfig) -> Path:
    """The local folder of a model; a hub model is downloaded if it was not before.

    Raises:
        ConfigError: there is no such folder or hub model; names `model.name` or `model.revision`.
    """
    if config.name == BUNDLED_MODEL:
        return BUNDLED_FOLDER
    if not config.name.strip():
        raise ConfigError("model.name", "is empty; give 'bundled', a folder or a hub name")
    folder = Path(config.name).expanduser()
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise ConfigError("model.name", f"{config.name[:100]!r} is no path: {one_line(error)}") from None
    if is_folder:
        if config.revision is not None:
            raise ConfigError("model.revision", f"{config.name} is a folder, and only hub models have revisions")
        if not (folder / "config.json").is_file():
            raise ConfigError("model.name", f"{folder} holds no config.json, so it is no model folder")
        return folder
    if exists:
        raise ConfigError("model.name", f"{folder} is a file; give the folder that holds config.json")
    if config.name.startswith((".", "/", "~")) or config.name.count("/") > 1:
        raise ConfigError("model.name", f"there is no folder {config.name!r}")
    return download_model(config.name, config.revision)


def pinned(config: ModelConfig) -> ModelConfig:
    """The same model with a hub name's revision resolved to a commit, so that every replica loads the same files.

    Raises:
        ConfigError: as `model_folder`.
    """
    folder = model_folder(config)
    if config.name == BUNDLED_MODEL or Path(config.name).expanduser().is_dir():
        return config
    return config.model_copy(update={"revision": folder.name})


def read_model_config(folder: Path) -> LlavaNextConfig:
    """The model's configuration, checked for what this package can run, before any weight is read.

    Raises:
        ConfigError: another architecture, quantised weights, or an unreadable file; names `model.name`.
    """
    settings = read_json(folder / "config.json")
    kind = settings.get("model_type")
    if kind != "llava_next":
        raise ConfigError("model.name", f"{folder} is a {kind!r} model; it must be 'llava_next'")
    for name, part in [
        ("", settings),
        *((f"{name}.", settings.get(name)) for name in ("text_config", "vision_config")),
    ]:
        if part is not None and not isinstance(part, dict):
            raise ConfigError(
                "model.name", f"{folder / 'config.json'}: {name[:-1]} must be a mapping, not {part!r:.80}"
            )
        if part and part.get("quantization_config"):
            raise ConfigError("model.name", f"{folder} {_quantised(part['quantization_config'])}")
    text = (settings.get("text_config") or {}).get("model_type", "llama")
    if text not in FAMILIES:
        raise ConfigError(
            "model.name",
            f"{folder}: text backbone {text!r} is not supported; it must be one of {', '.join(FAMILIES)}",
        )
    vision = (settings.get("vision_config") or {}).get("model_type", "clip_vision_model")
    if vision != "clip_vision_model":
        raise ConfigError("model.name", f"{folder}: vision tower {vision!r} is not supported; it must be CLIP's")
    from transformers import LlavaNextConfig

    with as_sentence(f"{folder / 'config.json'} does not describe a LLaVA-NeXT model"):
        config: LlavaNextConfig = LlavaNextConfig.from_pretrained(folder)
    return config


def _quantised(settings: object) -> str:
    kind = settings.get("quant_method") if isinstance(settings, dict) else None
    return (
        f"holds quantised weights (quantization_config, quant_method {kind!r}), which are not supported; "
        "give the model in bfloat16, float16 or float32"
    )


def stored_files(folder: Path) -> list[Path]:
    """The files that a model's weights come from: safetensors, or the file that says how to draw them.

    Raises:
        ConfigError: there are none, or of both kinds; names `model.name`.
    """
    drawn = folder / RANDOM_WEIGHTS_FILE
    if not drawn.is_file():
        return weight_files(folder)
    if any(folder.glob("*.safetensors")):
        raise ConfigError("model.name", f"{folder} holds both weights and {RANDOM_WEIGHTS_FILE}; remove one of them")
    read_seed(folder)
    return [drawn]


def stop_tokens_of(folder: Path, config: LlavaNextConfig) -> tuple[int, ...]:
    """The tokens that end an answer, the usual one first: `eos_token_id` of generation_config.json or, where there is
    no such file, of config.json.

    Raises:
        ConfigError: the file cannot be read; names `model.name`.
    """
    path = folder / GENERATION_FILE
    if path.is_file():
        stop = read_json(path).get("eos_token_id")
    else:
        from transformers import GenerationConfig

        stop = GenerationConfig.from_model_config(config).eos_token_id
    tokens = list(stop) if isinstance(stop, list | tuple) else [] if stop is None else [stop]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise ConfigError(
            "model.name", f"{path}: eos_token_id must be a token's number or a list of them, not {stop!r}"
        )
    return tuple(tokens)


def resolve_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The arithmetic of a replica: 'auto' is bfloat16 on a GPU and float32 on a CPU."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, wanted)


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The `LlavaNextForConditionalGeneration` of a folder, with its weights loaded or drawn, frozen.

    Raises:
        ConfigError: weights are missing, have another shape, or cannot be read; names `model.name` and some of them.
    """
    if (folder / RANDOM_WEIGHTS_FILE).is_file():
        return freeze(draw_model(folder, dtype, device).to(device))
    from transformers import LlavaNextForConditionalGeneration

    with as_sentence(f"{folder} cannot be loaded"), _quiet_transformers():
        model, report = LlavaNextForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, local_files_only=True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    refuse_missing(folder, report["missing_keys"], [name for name, *_ in report["mismatched_keys"]])
    return freeze(model.to(device))


def refuse_missing(folder: Path, missing: Iterable[str], mismatched: Iterable[str]) -> None:
    """Raise `ConfigError` that names some of a model's tensors that its files lack or hold in another shape."""
    for names, what in ((sorted(missing), "lack"), (sorted(mismatched), "hold in another shape than config.json says")):
        if names:
            raise ConfigError("model.name", f"the weight files in {folder} {what}: {name_some(names)}")


def name_some(names: list[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def load_processor(folder: Path) -> tuple[Any, Any]:
    """A model's processor and its image processor. The latter's class is given by name, so that every machine makes the
    same pixels (docs/checkpoints.md).

    Raises:
        ConfigError: a file is missing or cannot be read; names `model.name`.
    """
    for name in (*TEXT_FILES, *PROCESSOR_FILES, GENERATION_FILE):
        if (folder / name).is_file():
            refuse_lfs_pointer(folder / name)
            if name.endswith(".json"):
                read_json(folder / name)
    from transformers import AutoTokenizer, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    with as_sentence(f"the image processor in {folder} cannot be loaded"):
        settings, _ = LlavaNextImageProcessorPil.get_image_processor_dict(folder, local_files_only=True)
        kind = settings.get("image_processor_type") or ""
        if not kind.startswith("LlavaNextImageProcessor") and kind:
            raise ConfigError("model.name", f"{folder} has a {kind}; it must be a LlavaNextImageProcessor")
        image_processor = LlavaNextImageProcessorPil.from_pretrained(folder, local_files_only=True)
    with as_sentence(f"the tokenizer in {folder} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with as_sentence(f"the processor in {folder} cannot be loaded"):
        processor = LlavaNextProcessor.from_pretrained(
            folder, image_processor=image_processor, tokenizer=tokenizer, local_files_only=True
        )
    return processor, image_processor


def model_fingerprint(folder: Path) -> dict[str, str]:
    """xxh3-128 of a model by what its files are for: weights, architecture, processor, tokenizer.

    Weights are hashed whole, tensor by tensor: names and sizes do not tell two fine-tuned revisions apart, and the same
    tensors in other files are the same model.

    Raises:
        ConfigError: a file cannot be read; names `model.name`.
    """
    files = stored_files(folder)
    drawn = files[0].name == RANDOM_WEIGHTS_FILE
    whole = (folder / "tokenizer.json").is_file()
    text = [name for name in TEXT_FILES if not (whole and name in SLOW_TEXT_FILES)]
    settings = json.dumps(_architecture(read_model_config(folder)), sort_keys=True, default=str)
    return {
        "weights": _hash_files(files) if drawn else hash_weights(files),
        "config": xxhash.xxh3_128_hexdigest(settings.encode()),
        "processor": _hash_files([folder / name for name in PROCESSOR_FILES]),
        "tokenizer": _hash_files([folder / name for name in text]),
    }


def _architecture(config: LlavaNextConfig) -> dict[str, Any]:
    text = config.get_text_config()
    parts = {"model": (config, _SHAPE_OF_MODEL), "vision": (config.vision_config, _SHAPE_OF_VISION)}
    parts["text"] = (text, _SHAPE_OF_TEXT)
    shapes: dict[str, Any] = {
        part: {name: getattr(settings, name, None) for name in names} for part, (settings, names) in parts.items()
    }
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {**shapes, "head_dim": head_dim}


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from one of the model's files.

    Raises:
        ConfigError: the file cannot be read, is a Git LFS pointer, or holds no JSON object; names `model.name`.
    """
    refuse_lfs_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("model.name", f"{path} cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError("model.name", f"{path} must hold a mapping, not a {type(content).__name__}")
    return content


@contextmanager
def as_sentence(what: str) -> Iterator[None]:
    """Turn whatever transformers raises on a model's files into a `ConfigError` of one sentence."""
    try:
        yield
    except TrioRayError:
        raise
    except Exception as error:  # libraries raise anything on files that their authors did not think of
        raise ConfigError("model.name", f"{what}: {type(error).__name__}: {one_line(error)[:400]}") from None


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' own report of a load, which an error of ours replaces."""
    logger = logging.getLogger("transformers.modeling_utils")
    before, logger.disabled = logger.disabled, True  # a level would switch other reports on
    try:
        yield
    finally:
        logger.disabled = before
