"""One tiny model for all tests of the pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import build_model_folder
from trio_ray.config import ModelConfig
from trio_ray.model.replica import Replica


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random LLaVA-NeXT model."""
    return build_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def replica(tiny_model: Path) -> Replica:
    """That model, loaded."""
    return Replica.load(ModelConfig(name=str(tiny_model)))
