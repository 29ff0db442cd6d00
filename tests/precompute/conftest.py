"""The tiny Llama variant stands for all of them here: what differs between families is the model's business."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(model_folders: dict[str, Path]) -> Path:
    """The folder of a random LLaVA-NeXT model."""
    return model_folders["llama"]
