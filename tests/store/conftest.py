"""Both stores, so that every promise is tested over both, and a cache in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.caches import IDENTITY
from trio_ray.config import S3Config
from trio_ray.store.dataset import Dataset, create_or_check
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "local":
        return open_store(str(tmp_path / "cache"), S3Config())
    server = request.getfixturevalue("s3_environment")
    return open_store(f"{server.fresh_uri()}/a/cache", server.config)


@pytest.fixture
def s3_store(request: pytest.FixtureRequest) -> ObjectStore:
    """An empty prefix, for what only S3 does."""
    server = request.getfixturevalue("s3_environment")
    return open_store(server.fresh_uri(), server.config)


@pytest.fixture
def dataset(store: ObjectStore) -> Dataset:
    """A new cache in that store."""
    return create_or_check(store, IDENTITY, 4)
