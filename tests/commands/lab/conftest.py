"""A Ray for the benchmarks of whole jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.local_ray import local_ray


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """One Ray for all runs, which they join."""
    with local_ray(cpus=2):
        yield
