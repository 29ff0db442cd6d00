"""Over all workers each sample comes once an epoch, from any step on, and a damaged one ends the job or is counted."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.distill.conftest import COUNT, MakeCache
from trio_ray.cache.pruned_cache import OnBad, PrunedCache
from trio_ray.config import S3Config
from trio_ray.distill.stream import SampleStream
from trio_ray.errors import ConfigError, PrefixError
from trio_ray.store.opening import open_store


def stream(
    cache: PrunedCache, size: int, rank: int = 0, world: int = 1, on_bad: OnBad = "error", seed: int = 3
) -> SampleStream:
    return SampleStream(cache, None, size, rank, world, seed, threads=3, on_bad=on_bad)


@pytest.mark.parametrize(("size", "world"), [(4, 1), (1, 2), (3, 2), (7, 3), (25, 1)])
def test_each_epoch_has_each_sample_once_whatever_the_batches(cache: PrunedCache, size: int, world: int) -> None:
    seen = [
        [number for step in range(60) for number in stream(cache, size, rank, world).numbers(step)]
        for rank in range(world)
    ]
    shares = [COUNT * (rank + 1) // world - COUNT * rank // world for rank in range(world)]
    orders = set()
    for epoch in range(3):
        parts = [found[share * epoch : share * (epoch + 1)] for found, share in zip(seen, shares, strict=True)]
        whole = [number for part in parts for number in part]
        assert sorted(whole) == list(range(COUNT))
        orders.add(tuple(whole))
    assert len(orders) == 3


def test_a_stream_from_a_later_step_goes_on_as_the_first_one_did(cache: PrunedCache) -> None:
    """Embeddings come with their own rows."""
    whole = list(islice(stream(cache, 3).batches(0), 7))
    again = list(islice(stream(cache, 3).batches(4), 3))
    assert [[sample.row["key"] for sample in batch] for batch in again] == [
        [sample.row["key"] for sample in batch] for batch in whole[4:]
    ]
    for sample in (sample for batch in again for sample in batch):
        assert torch.equal(sample.embeds.rows, cache.embeds(sample.row["key"]).rows)
        assert sample.prefix is None


def test_with_a_kv_cache_each_sample_comes_with_its_prefix(cache: PrunedCache, make_cache: MakeCache) -> None:
    kv = make_cache()
    (batch,) = islice(SampleStream(cache, kv, 5, 0, 1, 0, 2, "error").batches(0), 1)
    assert len(batch) == 5
    for sample in batch:
        assert sample.prefix is not None
        assert sample.prefix.first_token == sample.row["first_token"]


@pytest.fixture
def damaged(cache: PrunedCache, tmp_path: Path) -> PrunedCache:
    """A copy in which one sample's bytes are not as written."""
    source = open_store(cache.uri, S3Config())
    for info in source.list():
        file = tmp_path / info.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read(info.name))
    row = cache.row("s0003")
    file = tmp_path / row["embeds_object"]
    data = bytearray(file.read_bytes())
    data[row["embeds_offset"] + 500] ^= 1
    file.write_bytes(data)
    return PrunedCache(str(tmp_path))


def test_a_damaged_sample_ends_the_stream_with_its_name_or_is_counted(damaged: PrunedCache) -> None:
    with pytest.raises(PrefixError, match="'s0003'"):
        list(islice(stream(damaged, COUNT).batches(0), 2))
    skipping = stream(damaged, COUNT, on_bad="skip")
    batches = list(islice(skipping.batches(0), 2))
    assert [len(batch) for batch in batches] == [COUNT - 1] * 2
    assert skipping.skipped == 2
    assert "s0003" not in {sample.row["key"] for batch in batches for sample in batch}


def test_a_worker_for_which_there_is_no_sample_is_refused(cache: PrunedCache) -> None:
    """Not divided by, as the number of its samples."""
    sizes = [len(stream(cache, 1, rank, COUNT).numbers(0)) for rank in range(COUNT)]
    assert sizes == [1] * COUNT
    with pytest.raises(ConfigError, match=rf"^cache: .* has no sample for replica 0 of {COUNT + 1}: use fewer"):
        stream(cache, 1, 0, COUNT + 1)
