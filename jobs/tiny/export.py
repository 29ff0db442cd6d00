"""From a training checkpoint to the folder that `from_pretrained` loads."""

from __future__ import annotations

from pathlib import Path

import torch

from jobs.tiny.architecture import build_model, build_processor
from jobs.tiny.checkpoint import load_checkpoint
from jobs.tiny.network import SharedImageTraining


def export(checkpoint: Path, folder: Path) -> None:
    """Write weights (bfloat16, one file), configuration, tokenizer, processor and chat template."""
    model = build_model(seed=0)
    load_checkpoint(checkpoint, SharedImageTraining(model))
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(folder)
    build_processor().save_pretrained(folder)
