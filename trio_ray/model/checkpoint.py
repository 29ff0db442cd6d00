"""Whether a checkpoint can be run, found out in seconds and without loading a weight."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from trio_ray.config import ModelConfig, PromptConfig
from trio_ray.errors import ConfigError, ModelError
from trio_ray.model.decoder import Decoder
from trio_ray.model.device_memory import DeviceMemory
from trio_ray.model.loading import (
    as_sentence,
    load_processor,
    model_folder,
    name_some,
    read_model_config,
    refuse_missing,
    stop_tokens_of,
    stored_files,
)
from trio_ray.model.prompt import PromptError, PromptWriter
from trio_ray.model.random_weights import RANDOM_WEIGHTS_FILE
from trio_ray.model.tiles import Tiler
from trio_ray.model.vision import VisionEncoder
from trio_ray.model.weights import FLOAT_TYPES, StoredTensor, read_headers
from trio_ray.source.sample import Turn

_BUFFERS = re.compile(r"(position_ids|inv_freq|masked_bias)$")
"""Tensors that old checkpoints hold and that a model makes itself."""

_QUESTION = "What is in this picture?"
_ANSWER = "Yes"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that can be run.

    Attributes:
        folder: where it is.
        config: its architecture.
        writer: its prompts.
        tiler: its tiles.
        stop_tokens: end an answer, the usual one first; may be empty.
        parameters: number of its weights, shared ones counted once.
        context: longest prompt that it takes, in rows.
        working_values: numbers that the prefill of one image of the largest grid holds at once beside the weights.
    """

    folder: Path
    config: LlavaNextConfig
    writer: PromptWriter
    tiler: Tiler
    stop_tokens: tuple[int, ...]
    parameters: int
    context: int
    working_values: int

    def check_targets(self) -> None:
        """Refuse a model of which the true answers' tokens (`cache.targets`) could not be told.

        Raises:
            ConfigError: it has no stop token, or its template does not let an answer follow a prompt; names
                `cache.targets`.
        """
        if not self.stop_tokens:
            raise ConfigError("cache.targets", f"{self.folder} names no eos_token_id that ends answers")
        prompt = self.writer.text([Turn("user", _QUESTION)], 1)
        try:
            whole = self.writer.continued(prompt, [Turn("assistant", _ANSWER)], then_answer=False)
            self.writer.new_ids(self.writer.ids(prompt), whole, prompt)
        except PromptError as error:
            raise ConfigError("cache.targets", f"no answer can be put behind a prompt of this model: {error}") from None

    def needed_bytes(self, dtype: torch.dtype) -> int:
        """What the weights and the prefill of one large image take."""
        return (self.parameters + self.working_values) * dtype.itemsize

    def check_memory(self, dtype: torch.dtype, memory: DeviceMemory) -> None:
        """Refuse a device whose whole memory is too small for the weights and one large image.

        Raises:
            ConfigError: names `model.name` and the sizes.
        """
        weights = self.parameters * dtype.itemsize
        work = self.needed_bytes(dtype) - weights + memory.overhead
        if weights + work > memory.bytes:
            raise ConfigError(
                "model.name",
                f"{self.folder} does not fit: its {self.parameters / 1e9:.1f} billion weights take "
                f"{weights / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')} and one large image "
                f"{work / 1e9:.1f} GB more, and {memory.name} has {memory.bytes / 1e9:.1f} GB; a replica uses "
                "one device",
            )


def check_checkpoint(config: ModelConfig, prompt: PromptConfig | None = None) -> Checkpoint:
    """Check a model without loading its weights: configuration, names and shapes of its tensors, processor, tokenizer,
    and one rendered prompt with an image.

    Args:
        config: the model; a hub model is downloaded if it was not before.
        prompt: how its prompts are written.

    Raises:
        ConfigError: it cannot be run; names `model.name` or `prompt.template` and says what is wrong.
    """
    folder = model_folder(config)
    with as_sentence(f"{folder} holds settings that the libraries which read it cannot take"):
        return _check_folder(folder, prompt)


def _check_folder(folder: Path, prompt: PromptConfig | None) -> Checkpoint:
    model_config = read_model_config(folder)
    files = stored_files(folder)
    model = _empty_model(folder, model_config)
    if files[0].name != RANDOM_WEIGHTS_FILE:
        _compare(folder, model, read_headers(files))
    processor, image_processor = load_processor(folder)
    try:
        tiler = Tiler.from_processor(image_processor, model_config.vision_config.patch_size)
        decoder = Decoder.of(model.model.language_model, model.lm_head)
        VisionEncoder(model.model, tiler, torch.float32)
    except ModelError as error:
        raise ConfigError("model.name", f"{folder}: {error}") from None
    _check_vision(folder, model_config, processor, tiler)
    stop_tokens = stop_tokens_of(folder, model_config)
    _check_vocabulary(folder, model_config, processor, stop_tokens)
    writer = PromptWriter(processor, model_config.image_token_id, prompt.template if prompt else None)
    _check_prompt(folder, writer, model_config.image_token_id)
    return Checkpoint(
        folder=folder,
        config=model_config,
        writer=writer,
        tiler=tiler,
        stop_tokens=stop_tokens,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context=decoder.context,
        working_values=_working_values(decoder, model_config, tiler),
    )


def _empty_model(folder: Path, config: LlavaNextConfig) -> Any:
    with as_sentence(f"{folder / 'config.json'} describes a model that cannot be built"), torch.device("meta"):
        return LlavaNextForConditionalGeneration._from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def _compare(folder: Path, model: nn.Module, stored: dict[str, StoredTensor]) -> None:
    """Compare the names, shapes and types of the stored tensors with those that the model would load."""
    quantised = sorted({tensor.dtype for tensor in stored.values()} - set(FLOAT_TYPES))
    weights = {name: tensor for name, tensor in stored.items() if not _BUFFERS.search(name)}
    if quantised and any(tensor.dtype not in FLOAT_TYPES for tensor in weights.values()):
        raise ConfigError(
            "model.name",
            f"{folder} holds weights of the type {', '.join(quantised)}, so they are quantised; give the model in "
            "bfloat16, float16 or float32",
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    loaded_as = _renamer(model, wanted)
    named = {loaded_as(name): tensor for name, tensor in weights.items()}
    extra = sorted(named.keys() - wanted.keys())
    adapters = [name for name in extra if "lora_" in name or ".base_layer." in name or ".modules_to_save." in name]
    if adapters:
        raise ConfigError(
            "model.name",
            f"the weight files in {folder} hold an adapter beside the weights ({name_some(adapters)}); merge it into "
            "the base model (in peft: merge_and_unload) and save that",
        )
    shared = [pair for pair in _tied(model).items() if named.keys() & set(pair)]
    missing = wanted.keys() - named.keys() - {name for pair in shared for name in pair}
    prefix = _common_prefix(weights, wanted) if missing else ""
    if prefix:
        raise ConfigError(
            "model.name",
            f"the names of the tensors in {folder} begin with {prefix!r}, as a wrapper such as peft saves them, so the "
            f"model would get none of them; save the wrapped model itself (it lacks {name_some(sorted(missing))})",
        )
    if missing == {"lm_head.weight"}:
        raise ConfigError(
            "model.name",
            f"the weight files in {folder} lack lm_head.weight, and config.json does not say tie_word_embeddings at "
            "its top level; set it there if the head shares the embedding's weights",
        )
    refuse_missing(folder, missing, ())
    shapes = [
        f"{name} {list(tensor.shape)} instead of {list(wanted[name])}"
        for name, tensor in named.items()
        if name in wanted and tensor.shape != wanted[name]
    ]
    refuse_missing(folder, (), shapes)
    lost = [name for name in extra if name.startswith(("model.", "language_model.", "vision_tower.", "lm_head."))]
    if lost:
        raise ConfigError(
            "model.name",
            f"the weight files in {folder} hold tensors that the model of config.json has no place for: "
            f"{name_some(lost)}; config.json and the weights do not belong together",
        )


def _tied(model: Any) -> dict[str, str]:
    """Names of tensors that share another's memory -> that other."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _renamer(model: Any, wanted: dict[str, tuple[int, ...]]) -> Callable[[str], str]:
    """Stored name -> the name under which transformers loads it, whatever version saved it."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix

    def loaded_as(name: str) -> str:
        renamed: str = rename_source_key(name, renamings, converters, prefix, wanted)[0]
        return name if renamed not in wanted and name in wanted else renamed

    return loaded_as


def _common_prefix(stored: dict[str, StoredTensor], wanted: dict[str, Any]) -> str:
    """What stands before a known name in every stored name, such as "base_model.model."."""
    heads = ("language_model.", "vision_tower.", "multi_modal_projector.", "image_newline", "lm_head.")
    prefixes = set()
    for name in stored:
        if name in wanted or name.startswith((*heads, "model.")):
            return ""
        places = [name.find("." + head) for head in heads if "." + head in name]
        if not places:
            return ""
        prefixes.add(name[: min(places) + 1])
    return min(prefixes, key=len, default="")


def _check_vision(folder: Path, config: LlavaNextConfig, processor: Any, tiler: Tiler) -> None:
    vision = config.vision_config
    depth = vision.num_hidden_layers
    layers = config.vision_feature_layer
    for layer in [layers] if isinstance(layers, int) else layers:
        if not -depth - 1 <= layer <= depth:
            raise ConfigError("model.name", f"{folder}: vision_feature_layer {layer} is beyond the tower's {depth}")
    pinpoints = [list(point) for point in tiler.pinpoints]
    pairs = {
        "image_grid_pinpoints": ([list(point) for point in config.image_grid_pinpoints], pinpoints),
        "image_size": (vision.image_size, tiler.tile),
        "patch_size": (vision.patch_size, processor.patch_size or vision.patch_size),
        "vision_feature_select_strategy": (
            config.vision_feature_select_strategy,
            processor.vision_feature_select_strategy or config.vision_feature_select_strategy,
        ),
    }
    for name, (of_config, of_processor) in pairs.items():
        if of_config != of_processor:
            raise ConfigError(
                "model.name",
                f"{folder}: config.json and the processor's files disagree about {name}: {of_config} and "
                f"{of_processor}; take both from the same model",
            )


def _check_vocabulary(folder: Path, config: LlavaNextConfig, processor: Any, stop_tokens: tuple[int, ...]) -> None:
    tokenizer, size = processor.tokenizer, config.get_text_config().vocab_size
    token, image = processor.image_token, config.image_token_id
    with as_sentence(f"the tokenizer in {folder} cannot be used"):
        ids = list(tokenizer(f"{token}", add_special_tokens=False)["input_ids"])
        vocabulary = tokenizer.get_vocab()
    if token not in vocabulary or len(ids) != 1:
        raise ConfigError(
            "model.name",
            f"{folder}: the tokenizer does not know the image token {token!r} (it reads it as the tokens {ids}); take "
            "tokenizer and config.json from the same model",
        )
    if ids[0] != image:
        raise ConfigError(
            "model.name",
            f"{folder}: the image token {token!r} is {ids[0]} to the tokenizer and {image} in config.json "
            "(image_token_index); take both from the same model",
        )
    largest = max(vocabulary, key=vocabulary.__getitem__)
    for name, number in ((largest, vocabulary[largest]), *(("eos_token_id", stop) for stop in stop_tokens)):
        if not 0 <= number < size:
            raise ConfigError(
                "model.name",
                f"{folder}: token {name!r} has the number {number}, and the model's vocabulary has {size} entries "
                "(vocab_size); take tokenizer and weights from the same model",
            )


def _check_prompt(folder: Path, writer: PromptWriter, image_token_id: int) -> None:
    """Render a question about one image, as every sample is one."""
    if not writer.has_template:
        raise ConfigError(
            "prompt.template",
            f"{folder} has no chat template; set prompt.template, for example 'USER: <image>\\n{{prompt}} ASSISTANT:'",
        )
    try:
        text = writer.text([Turn("user", _QUESTION)], 1)
        placed = writer.ids(text).count(image_token_id)
    except PromptError as error:
        raise ConfigError("prompt.template", f"{folder}: {error}; set prompt.template") from None
    if placed != 1:
        raise ConfigError(
            "prompt.template",
            f"{writer.template_name} of {folder} places {placed} images where a question has one (it writes "
            f"{text[:200]!r}); set prompt.template to a text with one <image> and {{prompt}}",
        )
    if _QUESTION not in text:
        raise ConfigError(
            "prompt.template",
            f"{writer.template_name} of {folder} does not write the question (it writes {text[:200]!r}); set "
            "prompt.template",
        )


def _working_values(decoder: Decoder, config: LlavaNextConfig, tiler: Tiler) -> int:
    """Of one image of the largest grid: its keys and values in all layers, and one layer's activations."""
    text = config.get_text_config()
    rows = max(tiler.token_count(height, width) for height, width in tiler.pinpoints)
    states = 2 * decoder.depth * decoder.kv_heads * decoder.head_dim
    return rows * (states + 3 * text.intermediate_size + 4 * text.hidden_size)
