"""Fixtures that several rooms share: tiny models of every text backbone, and the S3 server."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import STANDINS, write_standin
from tests.tiny_models import build_model_folder
from trio_ray.config import ModelConfig
from trio_ray.lab.accuracy.questions import HeldOutQuestion, held_out_questions
from trio_ray.model.loading import load_model, load_processor
from trio_ray.model.replica import Replica

pytest_plugins = ["tests.seaweed"]

os.environ["RAY_AUTH_MODE"] = "disabled"
"""Ray settles this once a process: a test that started a Ray with tokens would have the next one's workers refused."""

torch.set_num_threads(1)
"""Tensors of tiny models gain nothing from a second thread, and lose much where the cores are busy."""

FAMILIES = {"llama": 4, "mistral": 2, "qwen2": 2}
"""Text backbone -> key and value heads of its tiny model, which has 4 query heads."""


@pytest.fixture(autouse=True)
def _sigterm_ends_forks() -> None:
    """A Ray that an earlier test started leaves a handler that raises. A fork that is ended while it frees an object
    ignores what is raised, and never ends.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of a tiny random model with its processor."""
    root = tmp_path_factory.mktemp("models")
    return {family: build_model_folder(root / family, family, kv_heads) for family, kv_heads in FAMILIES.items()}


@pytest.fixture(scope="session")
def standins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> folder of a stand-in for each of the llava-hf checkpoints; do not change them."""
    root = tmp_path_factory.mktemp("standins")
    return {name: write_standin(root / name, name) for name in STANDINS}


@pytest.fixture(scope="session")
def replicas(model_folders: dict[str, Path]) -> dict[str, Replica]:
    """Family -> replica in fp32 on the CPU. Its Hugging Face model is `replica.model`; do not change it."""
    return {
        family: Replica.load(ModelConfig(name=str(folder), dtype="float32"), device=torch.device("cpu"))
        for family, folder in model_folders.items()
    }


@pytest.fixture(params=FAMILIES)
def replica(request: pytest.FixtureRequest, replicas: dict[str, Replica]) -> Replica:
    """A replica of each family: multi-head Llama, grouped Mistral, grouped Qwen2 with attention biases."""
    return replicas[request.param]


@pytest.fixture
def llama(replicas: dict[str, Replica]) -> Replica:
    """The Llama replica, where the family makes no difference."""
    return replicas["llama"]


@pytest.fixture(scope="session")
def processors(model_folders: dict[str, Path]) -> dict[str, Any]:
    """Family -> the model's own `LlavaNextProcessor`."""
    return {family: load_processor(folder)[0] for family, folder in model_folders.items()}


@pytest.fixture
def fresh_model(request: pytest.FixtureRequest, model_folders: dict[str, Path], replica: Replica) -> Any:
    """The Hugging Face model of `replica`'s family, loaded anew: the test may change it."""
    family = request.node.callspec.params["replica"]
    return load_model(model_folders[family], torch.float32, torch.device("cpu"))


@pytest.fixture(scope="session")
def bundled() -> Replica:
    """The bundled model in fp32 on the CPU."""
    return Replica.load(ModelConfig(dtype="float32"), device=torch.device("cpu"))


@pytest.fixture(scope="session")
def questions() -> list[HeldOutQuestion]:
    """Ten questions about four scenes."""
    return held_out_questions(10, per_scene=3, first_seed=40)
