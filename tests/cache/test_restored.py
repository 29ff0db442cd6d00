"""Batches restored ahead on a GPU are those that a CPU restores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.config import S3Config
from trio_ray.estimate.made_up_states import GEOMETRIES, prefix_batch
from trio_ray.kv.prefix import Prefix
from trio_ray.lab.restore.samples import store_samples
from trio_ray.lab.restore.stored import write_cache


def numbers(prefix: Prefix) -> list[torch.Tensor]:
    """Keys and values on the CPU."""
    return [tensor.cpu() for segment in prefix.segments for tensor in (segment.keys, segment.values)]


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["raw", "int8", "int4"])
def test_pinned_memory_is_used_again_only_after_the_device_has_read_it(codec: str, tmp_path: Path) -> None:
    states = prefix_batch(GEOMETRIES["bundled"], 6, torch.device("cuda"))
    samples = store_samples(codec, 1.0, GEOMETRIES["bundled"], states)
    stored = write_cache(str(tmp_path / "cache"), S3Config(), samples, 0)
    cache = PrunedCache(stored.uri)
    truth = [numbers(sample.prefix) for sample in cache.stream(stored.rows)]
    rows = list(stored.rows) * 10
    torch.cuda._sleep(200_000_000)  # the device is behind while the next batches are fetched
    restored = [sample for batch in cache.restored(rows, "cuda", batch=2) for sample in batch]
    for number, sample in enumerate(restored):
        assert isinstance(sample, StoredPrefix)
        assert sample.prefix.segments[0].keys.is_cuda
        for ours, theirs in zip(numbers(sample.prefix), truth[number % len(truth)], strict=True):
            assert torch.equal(ours, theirs)
