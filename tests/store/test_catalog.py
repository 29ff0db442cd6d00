"""Opening a cache of many parts reads a few objects, and the catalog never changes what is read."""

from __future__ import annotations

import os
import pickle
import random
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.caches import IDENTITY, shard, write_part
from trio_ray.cache.pruned_cache import AmbiguousKey, PrunedCache, UnknownKey
from trio_ray.cache.unreadable import PrefixMissing
from trio_ray.errors import ObjectDamaged
from trio_ray.lab.scale.requests import counted_requests
from trio_ray.store import catalog as catalogs
from trio_ray.store import catalog_writer, commit_table
from trio_ray.store.catalog import read_catalog, unseal
from trio_ray.store.catalog_writer import CatalogWriter, append_parts, complete_catalog
from trio_ray.store.commit_table import open_commits, read_commits, record_of, row_of
from trio_ray.store.commits import CommitRecord, create_commit, delete_commits
from trio_ray.store.dataset import Dataset, create_or_check
from trio_ray.store.findings import Finding, FindingKind
from trio_ray.store.gc import collect_garbage
from trio_ray.store.layout import CATALOG, commit_name
from trio_ray.store.local import LocalStore
from trio_ray.store.objects import ObjectStore
from trio_ray.store.repair import repair
from trio_ray.store.totals import add_up
from trio_ray.store.verify import verify

PARTS = [("a", part) for part in range(3)] + [("b", part) for part in range(4)]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_table, "READ_ALONE", 3)
    monkeypatch.setattr(catalog_writer, "SEGMENT_PARTS", 3)


def commit(store: ObjectStore, dataset: Dataset, name: str, part: int, last: bool = False) -> CommitRecord:
    keys = [f"{name}.{part}.{number}" for number in range(3)] + ["same"] * (part == 0)
    record = write_part(store, dataset, part, keys, last, shard(name), bad=part % 2)
    assert record is not None
    return record


class _Killed(BaseException):
    """Stands for the end of the process at a write."""


@pytest.fixture
def dataset(store: ObjectStore) -> Dataset:
    """A new cache in that store, which says what it holds of a sample."""
    return create_or_check(store, {**IDENTITY, "cache": {"level": "kv"}}, 4)


@pytest.fixture
def records(store: ObjectStore, dataset: Dataset) -> list[CommitRecord]:
    return [commit(store, dataset, name, part, (name, part) in (("a", 2), ("b", 3))) for name, part in PARTS]


def complete(store: ObjectStore) -> int:
    """Append what the catalog lacks, as a run does at its end."""
    return complete_catalog(store, read_commits(store, 2), 2)


@pytest.fixture
def catalogued(store: ObjectStore, records: list[CommitRecord]) -> ObjectStore:
    """A store whose catalog has all its records."""
    assert complete(store) == len(records)
    return store


def opened(store: ObjectStore) -> PrunedCache:
    return PrunedCache(store.uri, getattr(store, "_config", None))


def test_a_record_is_the_same_behind_its_row(records: list[CommitRecord]) -> None:
    split = replace(records[0], shard=replace(records[0].shard, rows=(3, 9), checksum="ab" * 16), damage="cut off")
    for record in [*records, split]:
        assert record_of(commit_table.table_of([row_of(record, "e")]).to_pylist()[0]) == record


def test_all_records_come_from_the_catalog(catalogued: ObjectStore, records: list[CommitRecord]) -> None:
    with counted_requests() as requests:
        assert read_commits(catalogued, 2) == records
    assert all(name.startswith(CATALOG) for name in requests.names)
    assert requests.gets == 1 + len(read_catalog(catalogued).segments) == 4


def test_the_smallest_cache_has_a_catalog_and_none_is_made_of_nothing(store: ObjectStore, dataset: Dataset) -> None:
    assert complete(store) == 0
    assert list(store.list(CATALOG)) == []
    only = write_part(store, dataset, 0, [], True, shard("a"), bad=2)
    assert complete(store) == 1
    assert open_commits(store, 2).sealed
    assert open_commits(store, 2) == [only]
    assert verify(store, 2).findings == []


def test_a_lost_part_is_damage_until_a_run_has_ended_without_it(catalogued: ObjectStore) -> None:
    """A file that was replaced by a shorter one has fewer parts than before."""

    def damage() -> list[str]:
        return [finding.object for finding in verify(catalogued, 2).findings if finding.is_damage]

    delete_commits(catalogued, "b", [3])
    assert commit_name("b", 3) in damage()
    complete(catalogued)
    assert damage() == []


def test_a_sealed_cache_is_opened_by_its_root_and_a_key_costs_its_own_segment(
    catalogued: ObjectStore, records: list[CommitRecord]
) -> None:
    """No record is listed, and of three segments none is read for sums."""
    with counted_requests() as requests:
        cache = opened(catalogued)
        assert len(cache) == sum(record.stored for record in records)
        assert "7 parts of 2 shards" in repr(cache)
        totals = cache.commits.totals
        assert (requests.gets, requests.lists) == (2, 1), "dataset.json, and the newest version"
        assert cache.row("b.3.2")["index"] == 3002
        assert sum("segments" in name for name in requests.names) == 1
        cache.row("b.3.1")
        pickle.loads(pickle.dumps(cache)).locate("b.3.1")
    assert sum("segments" in name for name in requests.names) == 2
    assert cache.commits == records
    assert totals == add_up(cache.commits.rows)


def test_while_a_run_works_readers_list_the_records(catalogued: ObjectStore, dataset: Dataset) -> None:
    """So they see what it has committed; when it ends, the root has that, too."""
    unseal(catalogued)
    late = commit(catalogued, dataset, "c", 0)
    assert late in opened(catalogued).commits
    assert not open_commits(catalogued, 2).sealed
    assert complete(catalogued) == 1
    assert open_commits(catalogued, 2).sealed
    assert opened(catalogued).commits[-1] == late


def test_a_seal_has_seen_what_another_run_committed_meanwhile(catalogued: ObjectStore, dataset: Dataset) -> None:
    """Between the listing and the seal of one run another one begins."""
    unseal(catalogued)
    first = commit(catalogued, dataset, "c", 0)
    listed = read_commits(catalogued, 2)
    append_parts(catalogued, [("c", 0)], 2)
    second = commit(catalogued, dataset, "c", 1)
    complete_catalog(catalogued, listed, 2)
    assert open_commits(catalogued, 2).sealed
    assert opened(catalogued).commits[-2:] == [first, second]
    assert verify(catalogued, 2).ok


def test_a_run_unseals_again_what_another_one_sealed(
    catalogued: ObjectStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_writer, "LOOK_S", 0.0)
    with CatalogWriter(catalogued, 2) as writer:
        late = commit(catalogued, dataset, "c", 0)
        writer.committed(("c", 0))
    assert late in opened(catalogued).commits


def test_what_was_changed_by_hand_is_noticed_when_the_records_are_listed(
    catalogued: ObjectStore, dataset: Dataset, records: list[CommitRecord]
) -> None:
    """Readers of a sealed cache see what it was; a sample whose files are gone is a typed error. `verify` names each
    difference, and the next run, or `gc`, ends it.
    """
    late = commit(catalogued, dataset, "c", 0)
    delete_commits(catalogued, "b", [3])
    catalogued.delete(records[-1].files["tar"].name)
    cache = opened(catalogued)
    assert cache.commits == records
    (lost,) = cache.fetch([cache.locate("b.3.0")])
    assert isinstance(lost, PrefixMissing)
    found = [finding.detail for finding in verify(catalogued, 2).findings if finding.is_damage]
    assert [commit_name("c", 0) in found[-1], "tells that there was one" in found[0], len(found)] == [True, True, 2]
    collect_garbage(catalogued, 3600.0, dry_run=True)
    assert open_commits(catalogued, 2).sealed
    collect_garbage(catalogued, 3600.0, dry_run=False)
    assert opened(catalogued).commits == [*records[:-1], late]
    complete(catalogued)
    assert open_commits(catalogued, 2).sealed
    assert opened(catalogued).commits == [*records[:-1], late]
    assert [finding.kind for finding in verify(catalogued, 2).findings if finding.is_damage] == []


def test_sums_of_a_seal_are_compared_with_the_records(catalogued: ObjectStore) -> None:
    catalog = read_catalog(catalogued)
    assert catalog.seal is not None
    wrong = replace(catalog.seal, totals=replace(catalog.seal.totals, stored=1))
    assert catalogs.create_version(catalogued, replace(catalog, version=catalog.version + 1, seal=wrong))
    (finding,) = [finding for finding in verify(catalogued, 2).findings if finding.is_damage]
    assert "sums" in finding.detail
    repair(catalogued, [finding])
    complete(catalogued)
    assert verify(catalogued, 2).ok


def test_a_reader_lists_the_records_when_a_segment_is_lost(
    catalogued: ObjectStore, dataset: Dataset, records: list[CommitRecord]
) -> None:
    """Whether it wants all parts or one; but it never sees other parts than those that it was opened with."""
    by_key, by_number, too_late = (opened(catalogued) for _ in range(3))
    for segment in read_catalog(catalogued).segments[1:]:
        catalogued.delete(segment.name)
    assert by_key.row("b.3.2")["index"] == by_number.rows_at([len(by_number) - 1])[0]["index"] == 3002
    assert by_key.row("a.0.1")["index"] == 1
    assert by_key.commits == by_number.commits == records
    commit(catalogued, dataset, "c", 0)
    with pytest.raises(ObjectDamaged, match="open the cache anew"):
        too_late.row("b.3.2")


@pytest.mark.parametrize("kept", range(4))
def test_a_kill_while_the_catalog_is_deleted_shows_no_older_one(
    catalogued: ObjectStore, records: list[CommitRecord], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair deletes it before it sets parts aside; versions before the last one were sealed with these parts."""
    damage = Finding(FindingKind.MISSING, commit_name("b", 3), None, "")

    def killed(names: Iterable[str]) -> None:
        for name in list(names)[:kept]:
            catalogued.delete(name)
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(catalogued, "delete_all", killed)
        with pytest.raises(_Killed):
            repair(catalogued, [damage])
    assert not open_commits(catalogued, 2).sealed
    assert opened(catalogued).commits == records


def test_gc_keeps_what_readers_may_have_been_opened_with(tmp_path: Path) -> None:
    """A version that was the highest a moment ago is still in use, however old its objects are."""
    store = LocalStore(tmp_path)
    dataset = create_or_check(store, {**IDENTITY, "cache": {"level": "kv"}}, 4)
    for part in range(5):
        commit(store, dataset, "a", part)
    complete(store)
    cache = opened(store)
    an_hour_ago = time.time() - 3600
    for file in (tmp_path / "catalog").rglob("*.*"):
        os.utime(file, (an_hour_ago, an_hour_ago))
    commit(store, dataset, "b", 0)
    complete(store)
    collect_garbage(store, 60.0, dry_run=False)
    assert cache.row("a.4.2")["index"] == 4002
    collect_garbage(store, 0.0, dry_run=False)
    assert verify(store, 2).findings == []


def test_what_was_committed_since_is_read_where_it_lies_and_appended_alone(
    catalogued: ObjectStore, dataset: Dataset, records: list[CommitRecord]
) -> None:
    late = commit(catalogued, dataset, "0", 0)
    with counted_requests() as requests:
        commits = read_commits(catalogued, 2)
        assert commits == [late, *records]
    assert commit_name("0", 0) in requests.names
    before = read_catalog(catalogued).segments
    assert complete(catalogued) == 1
    assert read_catalog(catalogued).segments[: len(before) - 1] == before[:-1]
    assert complete(catalogued) == 0


def test_appending_costs_what_is_new(catalogued: ObjectStore, dataset: Dataset) -> None:
    """However many parts there are, nothing else is listed, and no full segment is read."""
    commit(catalogued, dataset, "c", 0)
    with counted_requests() as requests:
        append_parts(catalogued, [("c", 0), ("c", 1)], 2)
    assert requests.lists == 2
    assert sum(name.startswith("commits/") for name in requests.names) == 1
    assert read_catalog(catalogued).parts == len(PARTS) + 1


def test_records_win_over_the_catalog(catalogued: ObjectStore, dataset: Dataset, records: list[CommitRecord]) -> None:
    """One that was made anew is read from where it lies; one that is gone stays away, its keys too."""
    unseal(catalogued)
    delete_commits(catalogued, "a", [1])
    delete_commits(catalogued, "b", [3])
    time.sleep(0.01)
    anew = write_part(catalogued, dataset, 1, ["a.1.0", "new"], False, shard("a"))
    cache = opened(catalogued)
    assert cache.commits == [records[0], anew, *records[2:-1]]
    assert cache.row("a.1.0")["kv_object"] == anew.files["tar"].name
    assert cache.row("new")["index"] == 1001
    for gone in ("a.1.1", "b.3.0"):
        with pytest.raises(UnknownKey):
            cache.row(gone)
    assert complete(catalogued) == len(cache.commits), "nothing of the last segment counts any more"
    assert opened(catalogued).row("new")["index"] == 1001
    assert [finding.kind for finding in verify(catalogued, 2).findings if finding.is_damage] == []


@pytest.mark.parametrize("kind", ["version", "segments"])
def test_without_it_or_with_a_damaged_one_the_records_are_read_one_by_one(
    catalogued: ObjectStore, records: list[CommitRecord], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    (name, *_) = [info.name for info in catalogued.list(CATALOG) if kind in info.name][::-1]
    intact = catalogued.read(name)
    where = random.Random(0)
    place = where.randrange(len(intact))
    flipped = intact[:place] + bytes([intact[place] ^ 1 << where.randrange(8)]) + intact[place + 1 :]
    for data in (b"", intact[:-5], flipped):
        catalogued.put(name, data)
        assert read_commits(catalogued, 2) == records
        assert any(name in finding.object or name in finding.detail for finding in verify(catalogued, 2).findings)
    assert "one by one" in caplog.text
    assert complete(catalogued) > 0, "it is made anew"
    with counted_requests() as requests:
        assert read_commits(catalogued, 2) == records
    assert not any(read.startswith("commits/") for read in requests.names)
    assert verify(catalogued, 2).ok
    for info in catalogued.list(CATALOG):
        catalogued.delete(info.name)
    assert read_commits(catalogued, 2) == records


def test_every_key_is_found_with_the_catalog_and_without(catalogued: ObjectStore, records: list[CommitRecord]) -> None:
    """A lookup reads a small range of each index and the segments of the parts that it finds, and none a second time;
    prefixes are found without their tables.
    """
    cache = opened(catalogued)
    assert len(cache.commits.catalog.indexes) == 1
    with counted_requests() as requests:
        for record in records:
            for number in range(3):
                key = f"{record.shard.name}.{record.part}.{number}"
                row = cache.row(key)
                assert (row["key"], row["shard"]) == (key, record.shard.name)
                located = cache.locate(key)
                assert located == {name: row[name] for name in located}
    assert sum(name.startswith(CATALOG) for name in requests.names) == 1 + len(cache.commits.catalog.segments)
    assert sum(name.endswith(".tar") for name in requests.names) == 0
    with pytest.raises(AmbiguousKey, match="name one of a, b"):
        cache.row("same")
    assert cache.row("same", "b")["shard"] == "b"
    catalogued.delete(catalogs.catalog_version_name(read_catalog(catalogued).version))


def test_a_pickled_cache_is_small_and_the_same(catalogued: ObjectStore, dataset: Dataset) -> None:
    commit(catalogued, dataset, "c", 0)
    cache = opened(catalogued)
    data = pickle.dumps(cache)
    commit(catalogued, dataset, "c", 1)
    again = pickle.loads(data)
    assert (again.commits == cache.commits, again.keys()) == (True, cache.keys())
    with_all_rows = pickle.dumps(cache.commits.rows)
    assert len(pickle.dumps(cache.commits)) < len(with_all_rows)


def test_a_run_appends_as_it_commits(store: ObjectStore, dataset: Dataset) -> None:
    """So a job that is killed leaves the catalog of all but the last parts."""
    with CatalogWriter(store, 2) as writer:
        for part in range(7):
            commit(store, dataset, "a", part)
            writer.committed(("a", part))
            while writer._appending is not None and not writer._appending.done():
                time.sleep(0.01)
        assert read_catalog(store).parts == 6
    assert complete(store) == 1


def test_two_writers_lose_nothing(catalogued: ObjectStore, dataset: Dataset) -> None:
    late = [("c", part) for part in range(6)]
    for name, part in late:
        commit(catalogued, dataset, name, part)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda parts: append_parts(catalogued, parts, 2), [late[:4], late[2:]]))
    cache = opened(catalogued)
    assert cache.commits.tail.num_rows == 0
    assert [(one.shard.name, one.part) for one in cache.commits] == [*PARTS, *late]
    assert cache.row("c.3.1")["index"] == 3001
    assert verify(catalogued, 2).ok


@pytest.mark.parametrize("write", [0, 1, 2, 3, 8])
def test_a_kill_at_any_write_leaves_a_whole_cache(
    store: ObjectStore, records: list[CommitRecord], write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Index, merged index, segment and version are written one behind the other; the last makes the others count. The
    last write seals.
    """
    done = 0

    def killing(plain):  # type: ignore[no-untyped-def]
        def one(self: ObjectStore, name: str, *arguments: object) -> object:
            nonlocal done
            if name.startswith(CATALOG):
                if done == 3 + write:
                    raise _Killed
                done += 1
            return plain(self, name, *arguments)

        return one

    with monkeypatch.context() as patch:
        for name in ("put", "create", "writer"):
            patch.setattr(type(store), name, killing(getattr(type(store), name)))
        with pytest.raises(_Killed):
            complete(store)
    assert open_commits(store, 2) == read_commits(store, 2) == records
    assert opened(store).row("b.3.2")["index"] == 3002
    report = verify(store, 2)
    assert report.ok
    assert all(finding.kind is FindingKind.ORPHAN for finding in report.findings)
    complete(store)
    assert read_commits(store, 2).tail.num_rows == 0
    time.sleep(1.1)  # S3 counts whole seconds
    collect_garbage(store, 0.0, dry_run=False)
    assert verify(store, 2).findings == []
    assert opened(store).row("a.0.0")["index"] == 0


def test_verify_holds_copies_and_indexes_against_records(
    catalogued: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> list[str]:
        return [finding.detail for finding in verify(catalogued, 2).findings if finding.kind is FindingKind.INDEX]

    assert found() == []
    index = read_catalog(catalogued).indexes[0]
    intact = catalogued.read(index.name)
    catalogued.put(index.name, intact[:100] + bytes([intact[100] ^ 1]) + intact[101:])
    assert ["bucket" in detail for detail in found()] == [True]
    with pytest.raises(ObjectDamaged, match="bucket"):
        opened(catalogued).row("a.0.0")
    catalogued.put(index.name, intact)
    read = catalogs.read_segment
    first = read_catalog(catalogued).segments[0]
    wrong = read(catalogued, first).to_pylist()
    wrong[0]["stored"] += 1
    with monkeypatch.context() as patch:
        patch.setattr(
            "trio_ray.store.verify_catalog.read_segment",
            lambda store, ref: commit_table.table_of(wrong) if ref == first else read(store, ref),
        )
        assert any("its copy of" in detail for detail in found())
    record = read_commits(catalogued, 2)[1]
    delete_commits(catalogued, record.shard.name, [record.part])
    assert create_commit(catalogued, record)
    assert found() == []
