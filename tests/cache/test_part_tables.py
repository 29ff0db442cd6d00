"""Rows are read by row groups: a key or a number costs the bytes around it, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cache.caches import IDENTITY, key_of, write_cache
from tests.store.caches import write_part
from trio_ray.cache import part_tables
from trio_ray.cache.pruned_cache import PrunedCache, UnknownKey, UnknownShard
from trio_ray.errors import ObjectDamaged
from trio_ray.lab.scale.requests import counted_requests
from trio_ray.store.dataset import create_or_check
from trio_ray.store.local import LocalStore
from trio_ray.store.row_groups import GROUP_ROWS

PARTS = [[3, 2], [4], [1, 1, 1]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("parts") / "cache"
    write_cache(folder, PARTS)
    return str(folder)


@pytest.fixture(autouse=True)
def small_tables_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_tables, "WHOLE_BYTES", 0)


@pytest.fixture
def read() -> Iterator[list[str]]:
    """Names of the objects that are read, once a request."""
    with counted_requests() as requests:
        yield requests.names


def tables(names: list[str]) -> list[str]:
    """Shards of the tables among them."""
    return [name.split("/")[2] for name in names if name.endswith(".parquet")]


def test_opening_reads_no_table_and_rows_by_number_only_their_row_groups(made: str, read: list[str]) -> None:
    """The first row of a part costs its footer and a row group, the next ones of that group nothing."""
    cache = PrunedCache(made)
    assert tables(read) == []
    rows = cache.rows_at([8, 0, 8, 1])
    assert [row["key"] for row in rows] == [key_of(1, 3), key_of(0, 0), key_of(1, 3), key_of(0, 1)]
    assert sorted(tables(read)) == ["shard-00000.tar"] * 2 + ["shard-00001.tar"] * 2
    cache.rows_at([2, 5])
    assert len(tables(read)) == 4


def test_some_rows_of_a_large_part_cost_their_row_groups_alone(tmp_path: Path, read: list[str]) -> None:
    """Rows of neighbouring groups are read together, and none is read a second time."""
    store = LocalStore(tmp_path)
    dataset = create_or_check(store, IDENTITY, 1000)
    write_part(store, dataset, keys=[f"k{number}" for number in range(5 * GROUP_ROWS + 7)], bad=0, kind=None)
    cache = PrunedCache(str(tmp_path))
    wanted = [5 * GROUP_ROWS + 6, 3, 4, GROUP_ROWS + 1, 3 * GROUP_ROWS]
    assert [row["key"] for row in cache.rows_at(wanted)] == [f"k{number}" for number in wanted]
    assert len(tables(read)) == 1 + 3
    assert cache.rows_at(range(len(cache))) == cache.table.to_pylist()


def test_only_long_columns_are_compressed_by_what_is_slow_to_start(tmp_path: Path) -> None:
    """A join of questions reads ten small columns of eight row groups of each table."""
    store = LocalStore(tmp_path)
    record = write_part(store, create_or_check(store, IDENTITY, 4), kind=None)
    assert record is not None
    group = pq.read_metadata(tmp_path / record.files["samples"].name).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    slow = {column.path_in_schema.partition(".")[0] for column in columns if column.compression == "ZSTD"}
    assert slow == {"prompt_ids", "kept", "answer_ids", "target_ids", "target_logprobs"}
    assert {column.compression for column in columns} == {"ZSTD", "SNAPPY"}


def test_a_small_table_is_read_by_one_request(made: str, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_tables, "WHOLE_BYTES", 1 << 20)
    cache = PrunedCache(made)
    assert cache.rows_at([0, 2, 1, 0]) == [cache.table.to_pylist()[number] for number in (0, 2, 1, 0)]
    assert tables(read)[0] == "shard-00000.tar"
    assert len(tables(read)) == 1 + len(cache.commits), "the whole table of the cache takes one each, too"


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
    for name in ("RECENT_BYTES", "FOOTER_BYTES"):
        monkeypatch.setattr(part_tables, name, 0)
    cache = PrunedCache(made)
    for number in (0, 0, 5, 0):
        cache.rows_at([number])
    assert tables(read)[::2] == ["shard-00000.tar", "shard-00001.tar", "shard-00000.tar"]


@pytest.mark.parametrize("place", ["footer", "row group"])
def test_damage_of_what_is_read_alone_is_found(tmp_path: Path, place: str) -> None:
    cache = write_cache(tmp_path, PARTS)
    file, footer = cache.commits.file(0, "samples"), cache.commits.footer(0)
    assert file is not None
    path = tmp_path / file.name
    data = bytearray(path.read_bytes())
    data[-footer.size + 100 if place == "footer" else 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ObjectDamaged, match=place):
        cache.rows_at([0])
    assert cache.rows_at([4])[0]["key"] == key_of(0, 4)


def test_a_table_that_lost_rows_is_refused(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number would else lead to another sample."""
    cache = PrunedCache(made)
    value = cache.commits.value
    monkeypatch.setattr(cache.commits, "value", lambda part, name: 4 if name == "stored" else value(part, name))
    name = cache.commits[0].files["samples"].name
    with pytest.raises(ObjectDamaged, match=f"{name}: has 3 rows"):
        cache.rows_at([0])


def test_threads_that_want_the_same_read_it_once(made: str, read: list[str]) -> None:
    cache = PrunedCache(made)
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda number: cache.row(key_of(1, number % 4)), range(64)))
    assert [row["key"] for row in rows] == [key_of(1, number % 4) for number in range(64)]
    assert sorted(name.rpartition(".")[2] for name in read if name.startswith("data/")) == [
        *["locators"] * 6,
        *["parquet"] * 2,
    ]
