"""A key is found by one small read, among any number of samples, however the keys are distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trio_ray.errors import ObjectDamaged
from trio_ray.store import key_index
from trio_ray.store.key_index import (
    BUCKET_LOCATORS,
    MOST_OF_A_KEY,
    IndexRef,
    merge_indexes,
    read_all,
    read_bucket,
    write_index,
)
from trio_ray.store.local import LocalStore
from trio_ray.store.locators import LOCATOR, digests, key_hash, matching


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def locators(keys: list[str], commit: int = 0) -> np.ndarray:
    rows = [(*key_hash(key), commit, row, 7 * row, 5, bytes(16)) for row, key in enumerate(keys)]
    return np.array(rows, LOCATOR)


def found(store: LocalStore, index: IndexRef, key: str) -> list[tuple[int, int]]:
    wanted = key_hash(key)
    same = matching(read_bucket(store, index, index.bucket_of(wanted[0])), wanted)
    return [(int(one["commit"]), int(one["row"])) for one in same]


@pytest.mark.parametrize("count", [0, 1, BUCKET_LOCATORS, BUCKET_LOCATORS + 1, 20_000])
def test_each_key_is_found_in_one_bucket_of_bounded_size(store: LocalStore, count: int) -> None:
    index = write_index(store, locators([f"k{number}" for number in range(count)]), 0, 1)
    assert store.stat(index.name).size == index.size
    assert index.bucket_bytes < 1.5 * (BUCKET_LOCATORS + 80) * LOCATOR.itemsize
    for number in range(0, count, 97):
        assert found(store, index, f"k{number}") == [(0, number)]
    assert found(store, index, "nobody") == []


def test_merged_indexes_hold_all_of_their_inputs(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any sizes, piece by piece, whatever a piece's share of each input."""
    monkeypatch.setattr(key_index, "_MERGED_AT_ONCE", 1000)
    sizes = [9000, 3, 1200]
    inputs = [
        write_index(store, locators([f"{commit}.{row}" for row in range(size)], commit), commit, commit + 1)
        for commit, size in enumerate(sizes)
    ]
    merged = merge_indexes(store, inputs)
    assert (merged.first, merged.beyond, merged.locators, merged.left_out) == (0, 3, sum(sizes), 0)
    for commit, size in enumerate(sizes):
        for row in range(0, size, 101):
            assert found(store, merged, f"{commit}.{row}") == [(commit, row)]
    everything = np.concatenate(list(read_all(store, merged)))
    given = np.concatenate([np.concatenate(list(read_all(store, one))) for one in inputs])
    assert digests(everything).sum() == digests(given).sum()
    assert (np.diff(everything["high"].astype(object)) >= 0).all()


def test_a_key_of_very_many_samples_does_not_make_buckets_large(store: LocalStore) -> None:
    """Row numbers as keys are in every shard of a corpus."""
    keys = [str(row % 50) for row in range(50 * 400)]
    index = write_index(store, locators(keys), 0, 1)
    assert index.locators == 50 * MOST_OF_A_KEY
    assert index.left_out == len(keys) - index.locators
    assert len(found(store, index, "7")) == MOST_OF_A_KEY
    assert index.size < 10 * index.locators * LOCATOR.itemsize
    assert merge_indexes(store, [index]).left_out == index.left_out


def test_a_bucket_that_is_damaged_or_anothers_is_refused(store: LocalStore) -> None:
    index = write_index(store, locators([f"k{number}" for number in range(5000)]), 0, 1)
    data = store.read(index.name)
    size = index.bucket_bytes
    for broken in (data[:9] + bytes([data[9] ^ 4]) + data[10:], data[size : 2 * size] + data[:size] + data[2 * size :]):
        store.put(index.name, broken)
        with pytest.raises(ObjectDamaged, match="bucket 0"):
            read_bucket(store, index, 0)
