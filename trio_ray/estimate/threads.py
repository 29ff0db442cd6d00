"""As many threads as a replica of the job has, so that a time measured here is a time there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trio_ray.config import PipelineConfig


@contextmanager
def threads_of_a_replica(settings: PipelineConfig) -> Iterator[None]:
    """Torch computes with the threads that a replica is given, until the end; by default it takes every core."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.torch_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
