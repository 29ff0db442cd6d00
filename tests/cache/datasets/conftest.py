"""One cache that all datasets read: four parts of uneven size in three shards, 47 samples."""

from __future__ import annotations

import pytest

from tests.cache.caches import write_cache
from trio_ray.cache.pruned_cache import PrunedCache

PARTS = [[20, 7], [12], [8]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where it is. Do not change it."""
    folder = tmp_path_factory.mktemp("datasets") / "cache"
    write_cache(folder, PARTS)
    return str(folder)


@pytest.fixture
def cache(made: str) -> PrunedCache:
    return PrunedCache(made)
