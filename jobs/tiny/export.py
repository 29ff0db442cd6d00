"""From a training checkpoint to the folder that `from_pretrained` loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from jobs.tiny.architecture import RECIPES, build_processor
from jobs.tiny.checkpoint import load_checkpoint
from jobs.tiny.network import SharedImageTraining

SAVED_TOWER = "vision_tower."
HUB_TOWER = "vision_tower.vision_model."


def export(checkpoint: Path, folder: Path) -> None:
    """Write weights (bfloat16, one file), configuration, tokenizer, processor and chat template."""
    recipe = RECIPES[json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["recipe"]]
    network = SharedImageTraining(recipe, seed=0)
    load_checkpoint(checkpoint, network)
    model = network.model
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(folder)
    use_hub_names(folder / "model.safetensors")
    build_processor(recipe.family).save_pretrained(folder)


def use_hub_names(weights: Path) -> None:
    """Name the tensors as the checkpoints on the hub do, which other engines load.

    transformers 5 saves the vision tower one level higher than the hub has it, and loads both.
    """
    tensors = load_file(weights)
    renamed = {
        HUB_TOWER + name.removeprefix(SAVED_TOWER)
        if name.startswith(SAVED_TOWER) and not name.startswith(HUB_TOWER)
        else name: tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, weights, {"format": "pt"})
