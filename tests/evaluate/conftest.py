"""A small cache of the tiny model, from a tar and from a JSONL of two shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.corpora import sample, samples, write_jsonl, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.model.replica import Replica


@pytest.fixture(scope="module")
def made(
    model_folders: dict[str, Path], replicas: dict[str, Replica], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`corpus/` and the `cache/` made of it; s0003 and s0004 are in both files, the tar's s0006 is empty."""
    folder = tmp_path_factory.mktemp("made")
    inputs = [
        write_tar(folder / "corpus" / "a.tar", [*samples(5), sample(6, png=b"")]),
        write_jsonl(folder / "corpus" / "b.jsonl", samples(6, first=3)),
    ]
    config = job_config(
        model_folders["llama"], [str(file) for file in inputs], folder / "cache", source__rows_per_shard=4
    )
    run_here(config, replicas["llama"])
    return folder


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> PrunedCache:
    """A copy of the cache, which a test may damage."""
    return PrunedCache(str(shutil.copytree(made / "cache", tmp_path / "cache")))
