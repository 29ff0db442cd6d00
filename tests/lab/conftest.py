"""The bundled model and a few held-out questions."""

from __future__ import annotations

import pytest
import torch

from trio_ray.config import ModelConfig
from trio_ray.lab.accuracy.questions import HeldOutQuestion, held_out_questions
from trio_ray.model.replica import Replica


@pytest.fixture(scope="session")
def bundled() -> Replica:
    """The bundled model in fp32 on the CPU."""
    return Replica.load(ModelConfig(dtype="float32"), device=torch.device("cpu"))


@pytest.fixture(scope="session")
def questions() -> list[HeldOutQuestion]:
    """Ten questions about four scenes."""
    return held_out_questions(10, per_scene=3, first_seed=40)
