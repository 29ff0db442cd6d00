"""The student: the teacher with fewer decoder layers, as a Hugging Face model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trio_ray.distill.config import StudentConfig
from trio_ray.errors import ConfigError
from trio_ray.model.loading import PROCESSOR_FILES, TEXT_FILES, load_model, read_model_config


def layer_numbers(config: StudentConfig, depth: int) -> list[int]:
    """The teacher's layers, of `depth`, that the student begins with, from 0.

    Raises:
        ConfigError: the student would be deeper than the teacher.
    """
    if config.layers > depth:
        raise ConfigError("student.layers", f"{config.layers} are more than the teacher's {depth}")
    if config.start != "spread" or config.layers == 1:
        return list(range(config.layers))
    return [round(number * (depth - 1) / (config.layers - 1)) for number in range(config.layers)]


def build_student(folder: Path, config: StudentConfig, seed: int) -> Any:
    """A `LlavaNextForConditionalGeneration` of the teacher's weights with fewer layers, fp32, on the CPU.

    Its decoder layers, final norm and `lm_head` are to be trained; all else has `requires_grad` off, so that input
    embeddings stored by the teacher are what the student itself would begin with.

    Args:
        folder: the teacher's.
        config: how many layers, and where from.
        seed: of fresh weights.

    Raises:
        ConfigError: more layers than the teacher has.
    """
    numbers = layer_numbers(config, read_model_config(folder).get_text_config().num_hidden_layers)
    model: Any = load_model(folder, torch.float32, torch.device("cpu"))
    decoder = model.model.language_model
    decoder.layers = nn.ModuleList(decoder.layers[number] for number in numbers)
    for place, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = place  # which slot of a KV cache it writes
    _set_depth(model.config.get_text_config(), numbers)
    if model.lm_head.weight is decoder.embed_tokens.weight:
        model.lm_head = copy.deepcopy(model.lm_head)  # a tied head would move the embeddings, which must stay
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    if config.start == "fresh":
        _draw(model, seed)
    for part in (decoder.layers, decoder.norm, model.lm_head):
        part.requires_grad_(True)
    return model


def trained_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Those that learn, by name, in a fixed order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_student(model: Any, teacher: Path, folder: Path) -> None:
    """Write a student as a folder that Hugging Face and `Replica.load` read, weights in the teacher's stored type.

    Args:
        model: the student.
        teacher: the folder that its processor and tokenizer are copied from.
        folder: where to; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = read_model_config(teacher).dtype or torch.float32
    saved = copy.deepcopy(model).to(dtype)
    saved.save_pretrained(folder)
    for name in (*TEXT_FILES, *PROCESSOR_FILES):
        if (teacher / name).is_file():
            (folder / name).write_bytes((teacher / name).read_bytes())


def _set_depth(config: Any, numbers: list[int]) -> None:
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(numbers)
    if kinds is not None:  # full or windowed attention, layer by layer
        config.layer_types = [kinds[number] for number in numbers]


def _draw(model: Any, seed: int) -> None:
    """Weights as the model's configuration has them drawn: matrices normal, norms 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.get_text_config().initializer_range
    with torch.no_grad():
        for part in (model.model.language_model.layers, model.model.language_model.norm, model.lm_head):
            for name, parameter in part.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, width, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
