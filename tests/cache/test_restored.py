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


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["raw", "int4"])
def test_the_device_finds_what_a_checksum_tells_and_the_batch_goes_on(codec: str, tmp_path: Path) -> None:
    """A byte of the header, of the first tensor and of the last one, each in another sample."""
    states = prefix_batch(GEOMETRIES["bundled"], 6, torch.device("cuda"))
    samples = store_samples(codec, 1.0, GEOMETRIES["bundled"], states)
    stored = write_cache(str(tmp_path / "cache"), S3Config(), samples, 0)
    object_ = tmp_path / "cache" / stored.rows[0]["kv_object"]
    data = bytearray(object_.read_bytes())
    for number, place in ((1, 40), (2, 5000), (4, -1)):
        row = stored.rows[number]
        data[row["kv_offset"] + (place if place >= 0 else row["kv_length"] + place)] ^= 1
    object_.write_bytes(data)
    batches = list(PrunedCache(stored.uri).restored(stored.rows, "cuda"))
    found = [outcome for batch in batches for outcome in batch]
    bad = [number for number, outcome in enumerate(found) if not isinstance(outcome, StoredPrefix)]
    assert bad == [1, 2, 4]
    for number in bad:
        assert "checksum differs" in str(found[number])
