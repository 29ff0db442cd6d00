"""The tiny Llama variant stands for all models here."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(model_folders: dict[str, Path]) -> Path:
    """The folder of a random LLaVA-NeXT model."""
    return model_folders["llama"]
