"""The map-style dataset: any sample by its number, in this process or in workers."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, DistributedSampler

from tests.cache.caches import prefix_of
from tests.kv.prefixes import assert_same
from trio_ray.cache.datasets import PrefixDataset, collate
from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.errors import PrefixError


def test_a_sample_has_the_place_of_its_key(cache: PrunedCache) -> None:
    dataset = PrefixDataset(cache)
    assert len(dataset) == 47
    for number in (0, 19, 20, 46, -1):
        sample = dataset[number]
        assert isinstance(sample, StoredPrefix)
        assert sample.row["key"] == cache.keys()[number]
        assert_same(sample.prefix, prefix_of(sample.row["key"]))


@pytest.mark.parametrize("number", [47, -48])
def test_there_is_nothing_beyond_the_ends(cache: PrunedCache, number: int) -> None:
    with pytest.raises(IndexError, match="46"):
        PrefixDataset(cache)[number]


def test_a_loader_with_workers_gives_ragged_batches_in_order(cache: PrunedCache) -> None:
    batches = list(DataLoader(PrefixDataset(cache), batch_size=6, num_workers=2, collate_fn=collate))
    assert [row["key"] for batch in batches for row in batch.rows] == cache.keys()
    assert len({prefix.length for prefix in batches[0].prefixes}) > 1
    for batch in batches:
        for row, prefix in zip(batch.rows, batch.prefixes, strict=True):
            assert_same(prefix, prefix_of(row["key"]))


def test_torchs_own_sampler_shards_it(cache: PrunedCache) -> None:
    dataset = PrefixDataset(cache)
    seen: list[str] = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, drop_last=False)
        batches = DataLoader(dataset, batch_size=5, sampler=sampler, num_workers=2, collate_fn=collate)
        seen += [row["key"] for batch in batches for row in batch.rows]
    assert set(seen) == set(cache.keys())  # this sampler pads: one sample comes twice, which PrefixStream avoids
    assert len(seen) == 48


def test_it_can_be_pickled_and_takes_no_data_along(cache: PrunedCache) -> None:
    dataset = PrefixDataset(cache)
    first = dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 10_000
    again = pickle.loads(data)[0]
    assert isinstance(first, StoredPrefix)
    assert isinstance(again, StoredPrefix)
    assert_same(again.prefix, first.prefix)


def test_a_damaged_sample_is_an_error_or_stands_among_the_skipped(made: str, tmp_path: Path) -> None:
    stored = PrunedCache(str(shutil.copytree(made, tmp_path / "cache")))
    row = stored.rows_at([3])[0]
    file = Path(stored.uri) / row["kv_object"]
    data = bytearray(file.read_bytes())
    data[row["kv_offset"] + 9] ^= 1
    file.write_bytes(data)
    with pytest.raises(PrefixError, match=row["key"]):
        PrefixDataset(stored)[3]
    (batch,) = DataLoader(PrefixDataset(stored, on_bad="skip"), batch_size=47, num_workers=1, collate_fn=collate)
    assert len(batch) == 46
    assert [(error.key, error.uri) for error in batch.skipped] == [(row["key"], str(file))]
