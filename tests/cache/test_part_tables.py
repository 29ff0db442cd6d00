"""Rows are read part by part: a search or a number costs the tables it needs, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cache.caches import key_of, write_cache
from trio_ray.cache import part_tables
from trio_ray.cache.key_index import KeyIndex
from trio_ray.cache.pruned_cache import PrunedCache, UnknownKey, UnknownShard
from trio_ray.errors import ObjectDamaged
from trio_ray.store.local import LocalStore

PARTS = [[3, 2], [4], [1, 1, 1]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("parts") / "cache"
    write_cache(folder, PARTS)
    return str(folder)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects that are read whole, as they are read."""
    names: list[str] = []
    plain = LocalStore.read

    def noted(store: LocalStore, name: str) -> bytes:
        names.append(name)
        return plain(store, name)

    monkeypatch.setattr(LocalStore, "read", noted)
    return names


def tables(names: list[str]) -> list[str]:
    """Shards of the tables among them."""
    return [name.split("/")[1] for name in names if name.endswith(".parquet")]


def test_opening_reads_no_table_and_rows_by_number_only_their_parts(made: str, read: list[str]) -> None:
    cache = PrunedCache(made)
    assert tables(read) == []
    rows = cache.rows_at([8, 0, 8, 1])
    assert [row["key"] for row in rows] == [key_of(1, 3), key_of(0, 0), key_of(1, 3), key_of(0, 1)]
    assert sorted(tables(read)) == ["shard-00000.tar", "shard-00001.tar"]
    cache.rows_at([2, 5])
    assert len(tables(read)) == 2  # kept for the next rows


def test_a_key_of_a_shard_costs_this_shards_tables(made: str, read: list[str]) -> None:
    cache = PrunedCache(made)
    assert cache.row(key_of(2, 1), "shard-00002.tar")["index"] == 1
    assert set(tables(read)) == {"shard-00002.tar"}
    with pytest.raises(UnknownKey):
        cache.row(key_of(1, 1), "shard-00002.tar")


def test_a_cache_of_some_shards_reads_nothing_of_the_others(made: str, read: list[str]) -> None:
    cache = PrunedCache(made, shards=["shard-00001.tar"])
    assert cache.keys() == [key_of(1, number) for number in range(4)]
    assert [item.row["key"] for item in cache.stream()] == cache.keys()
    assert not [name for name in read if "shard-00000" in name or "shard-00002" in name]
    with pytest.raises(UnknownShard, match=r"shard-7\.tar"):
        PrunedCache(made, shards=["shard-00001.tar", "shard-7.tar"])


def test_columns_and_shards_can_be_chosen(made: str) -> None:
    cache = PrunedCache(made)
    table = cache.read_table(["kv_length", "shard", "key"], shard="shard-00002.tar")
    assert table.column_names == ["kv_length", "shard", "key"]
    assert table.column("key").to_pylist() == [key_of(2, number) for number in range(3)]
    assert set(table.column("shard").to_pylist()) == {"shard-00002.tar"}
    assert cache.read_table().equals(cache.table)
    assert cache.read_table(["key"]).num_rows == len(cache) == 12
    assert cache.rows_at([3], ["key", "index"]) == [{"key": key_of(0, 3), "index": 3}]


@pytest.mark.parametrize("number", [-1, 12])
def test_numbers_beyond_the_cache_are_refused(made: str, number: int) -> None:
    with pytest.raises(IndexError, match="0 to 11"):
        PrunedCache(made).rows_at([0, number])


def test_memory_of_tables_is_bounded(made: str, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_tables, "RECENT_BYTES", 0)
    cache = PrunedCache(made)
    for number in (0, 0, 5, 0):
        cache.rows_at([number])
    assert tables(read) == ["shard-00000.tar", "shard-00001.tar", "shard-00000.tar"]


def test_a_table_that_lost_rows_is_refused(made: str) -> None:
    """A number would else lead to another sample."""
    cache = PrunedCache(made)
    broken = cache.commits[0].files["samples"].name
    object.__setattr__(cache.commits[0], "stored", 4)
    with pytest.raises(ObjectDamaged, match=f"{broken}: has 3 rows"):
        cache.rows_at([0])


def test_keys_with_one_hash_are_told_apart_by_their_rows(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_ray.cache.key_index._hash", lambda key: 7)
    cache = PrunedCache(made)
    assert cache.row(key_of(1, 2))["key"] == key_of(1, 2)
    with pytest.raises(UnknownKey):
        cache.row("nobody")


def test_an_index_of_many_keys_is_small_and_finds_each() -> None:
    count = 50_000
    index = KeyIndex((f"k{number}" for number in range(count)), np.arange(count))
    assert all(number in index.candidates(f"k{number}") for number in range(0, count, 997))
    assert index.candidates("nobody") == []
    assert index._hashes.nbytes + index._numbers.nbytes == 16 * count
