"""A finished cache in a folder for the commands that read one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.corpora import photo, sample, samples, write_jsonl, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.model.replica import Replica


@pytest.fixture(scope="session")
def tiny_model(model_folders: dict[str, Path]) -> Path:
    """The folder of a random LLaVA-NeXT model."""
    return model_folders["llama"]


@pytest.fixture(scope="module")
def made(tiny_model: Path, replicas: dict[str, Replica], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `corpus/` and the `cache/` made of it: a tar, and a JSONL of two shards; one sample is bad."""
    folder = tmp_path_factory.mktemp("made")
    members = [sample(50, png=photo()), *samples(5), sample(6, png=b"")]
    inputs = [
        write_tar(folder / "corpus" / "a.tar", members),
        write_jsonl(folder / "corpus" / "b.jsonl", [*samples(5, first=3), sample(8, __key__="vqa:8")]),
    ]
    config = job_config(tiny_model, [str(file) for file in inputs], folder / "cache", source__rows_per_shard=4)
    run_here(config, replicas["llama"])
    return folder


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A copy of the cache, which a test may damage."""
    return shutil.copytree(made / "cache", tmp_path / "cache")
