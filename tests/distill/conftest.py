"""Caches of the same ten samples, two of them without an answer, made by the tiny Llama model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import samples, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import parse_section
from trio_ray.distill.config import DistillConfig
from trio_ray.model.replica import Replica

COUNT = 10

MakeCache = Callable[..., PrunedCache]
MakeConfig = Callable[..., DistillConfig]


@pytest.fixture(scope="session")
def make_cache(
    model_folders: dict[str, Path], replicas: dict[str, Replica], tmp_path_factory: pytest.TempPathFactory
) -> MakeCache:
    """A cache of the samples with these settings, made once. Do not change it."""
    corpus = write_tar(tmp_path_factory.mktemp("corpus") / "a.tar", samples(COUNT))
    made: dict[str, str] = {}

    def cache_of(**settings: Any) -> PrunedCache:
        name = repr(sorted(settings.items()))
        if name not in made:
            made[name] = str(tmp_path_factory.mktemp("cache"))
            config = job_config(model_folders["llama"], corpus, made[name], cache__top_k=5, **settings)
            run_here(config, replicas["llama"])
        return PrunedCache(made[name])

    return cache_of


@pytest.fixture(scope="session")
def cache(make_cache: MakeCache) -> PrunedCache:
    """What a student learns from: retained embeddings with the teacher's distributions."""
    return make_cache(cache__level="embeds", cache__targets="top_k")


@pytest.fixture
def make_config(cache: PrunedCache, model_folders: dict[str, Path], tmp_path: Path) -> MakeConfig:
    """A small distillation from `cache`; `settings` by section."""

    def config_of(**settings: Any) -> DistillConfig:
        tree: dict[str, Any] = {
            "cache": cache.uri,
            "output": str(tmp_path / "student"),
            "teacher": {"name": str(model_folders["llama"])},
            "student": {"layers": 2},
            "training": {"steps": 6, "batch_size": 4, "warmup_steps": 1, "read_threads": 2},
        }
        for name, value in settings.items():
            tree[name] = {**tree[name], **value} if isinstance(tree.get(name), dict) else value
        return parse_section(DistillConfig, tree)

    return config_of
