"""What is measured for a plan is measured with the threads that the job's replicas will have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trio_ray.config import PipelineConfig
from trio_ray.estimate.threads import threads_of_a_replica


@pytest.fixture
def three_threads() -> Iterator[None]:
    """A process that computes with three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (2.9, 2)])
@pytest.mark.usefixtures("three_threads")
def test_torch_has_the_threads_of_a_replica_until_the_end(cpus: float, threads: int) -> None:
    """As `pipeline.cpus_per_replica` gives them, whole ones and at least one; also where measuring fails."""
    with pytest.raises(OSError), threads_of_a_replica(PipelineConfig(cpus_per_replica=cpus)):  # noqa: PT011, PT012
        assert torch.get_num_threads() == threads
        raise OSError
    assert torch.get_num_threads() == 3
