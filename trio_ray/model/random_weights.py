"""Models without weights: a small file in the place of *.safetensors says how to draw them, on the device itself.

For benchmarks and load tests: a 7B model is there in seconds, and neither disk nor host memory holds its 14 GB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from trio_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import LlavaNextForConditionalGeneration

RANDOM_WEIGHTS_FILE = "random_weights.json"

GAIN = 1.3
"""Standard deviation of a weight, times the root of its inputs. A softmax over n keys then rests on about
n * exp(-1.3 ** 4), so attention is neither flat nor stuck on one key, and 32 layers stay far within bfloat16.
"""

WRITES_BACK = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")
WRITTEN_SHARE = 0.25
"""Factor on the weights that add to the residual stream. At full size every layer adds the same vector to all tokens
(the mean of its activations), until they are alike and suppression has nothing to choose from.
"""

DIRECTIONS = ("image_newline", "class_embedding")
"""Vectors among the parameters that stand for a token; the other vectors are norms' weights and biases."""


def read_seed(folder: Path) -> int:
    """The seed of a folder's random weights.

    Raises:
        ConfigError: the file is unreadable, or holds anything but `{"seed": <whole number>}`; names `model.name`.
    """
    path = folder / RANDOM_WEIGHTS_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("model.name", f"{path} cannot be read: {error}") from None
    seed = settings.get("seed") if isinstance(settings, dict) and set(settings) == {"seed"} else None
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError("model.name", f'{path} must hold {{"seed": <whole number>}}')
    return seed


def draw_model(folder: Path, dtype: torch.dtype, device: torch.device) -> LlavaNextForConditionalGeneration:
    """The model of `folder/config.json` with random weights, made on `device` in `dtype`.

    The same seed gives the same weights on every device of one kind, and in another dtype the same ones rounded.
    """
    seed = read_seed(folder)
    from transformers import GenerationConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig.from_pretrained(folder)
    kept = [device] if device.type == "cuda" else []
    # Built on the device, not on `meta`: buffers that no file holds, such as rotary tables, come out as they should be.
    with torch.random.fork_rng(kept), device:
        model = LlavaNextForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    _draw_weights(model, torch.Generator(device).manual_seed(seed))
    model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


@torch.no_grad()
def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and not name.endswith(DIRECTIONS):
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        is_token = "embed_tokens" in name or "position_embedding" in name or name.endswith(DIRECTIONS)
        gain = GAIN * WRITTEN_SHARE if name.endswith(WRITES_BACK) else GAIN
        std = 1.0 if is_token else gain / parameter[0].numel() ** 0.5
        drawn = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        parameter.copy_(drawn.normal_(0.0, std, generator=generator))
