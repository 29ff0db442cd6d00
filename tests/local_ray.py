"""A Ray of the tests' own process, for as long as a fixture lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray


@contextmanager
def local_ray(cpus: int) -> Iterator[str]:
    """Start Ray here, whatever RAY_ADDRESS says; gives its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
