"""Opening a cache of many parts reads one object, and the index never changes what is read."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.store.test_commits import commit
from trio_ray.errors import AccessRefused, ObjectDamaged
from trio_ray.store import commit_index
from trio_ray.store.commit_index import update_index
from trio_ray.store.commits import create_commit, read_commits
from trio_ray.store.findings import FindingKind
from trio_ray.store.layout import COMMIT_INDEX, commit_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.verify import verify

RECORDS = [commit(name, part, last=part == 2) for name in ("a", "b") for part in range(3)]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_index, "WORTH_IT", 4)


@pytest.fixture
def indexed(store: ObjectStore) -> ObjectStore:
    """A store with an index of all its records."""
    for record in RECORDS:
        create_commit(store, record)
    assert update_index(store, 2) == len(RECORDS)
    return store


@pytest.fixture
def reads(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects that are read from here on."""
    names: list[str] = []
    read = type(store).read

    def noted(self: ObjectStore, name: str) -> bytes:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(type(store), "read", noted)
    return names


def test_all_records_come_from_one_object(indexed: ObjectStore, reads: list[str]) -> None:
    assert read_commits(indexed, 2) == RECORDS
    assert reads == [COMMIT_INDEX]


def test_of_few_records_there_is_no_index_and_it_is_not_asked_for(store: ObjectStore, reads: list[str]) -> None:
    for record in RECORDS[:3]:
        create_commit(store, record)
    assert update_index(store, 2) == 0
    assert read_commits(store, 2) == RECORDS[:3]
    assert not any(info.name == COMMIT_INDEX for info in store.list())
    assert COMMIT_INDEX not in reads


def test_a_shard_of_few_parts_is_read_without_it(indexed: ObjectStore, reads: list[str]) -> None:
    assert read_commits(indexed, 2, ["b"]) == RECORDS[3:]
    assert sorted(reads) == [commit_name("b", part) for part in range(3)]


def test_what_was_committed_since_is_read_where_it_lies(indexed: ObjectStore, reads: list[str]) -> None:
    late = commit("c", 0)
    create_commit(indexed, late)
    assert read_commits(indexed, 2) == [*RECORDS, late]
    assert reads == [COMMIT_INDEX, commit_name("c", 0)]


def test_a_record_that_was_made_anew_is_not_the_one_that_was_copied(indexed: ObjectStore) -> None:
    anew = replace(RECORDS[1], attempt="again", stored=7)
    indexed.delete(commit_name("a", 1))
    assert create_commit(indexed, anew)
    assert read_commits(indexed, 2) == [RECORDS[0], anew, *RECORDS[2:]]


def test_what_is_no_longer_committed_stays_away(indexed: ObjectStore) -> None:
    indexed.delete(commit_name("b", 2))
    assert read_commits(indexed, 2) == RECORDS[:-1]


def test_it_is_written_when_something_has_changed_and_only_then(indexed: ObjectStore, reads: list[str]) -> None:
    assert update_index(indexed, 2) == 0
    create_commit(indexed, commit("c", 0))
    reads.clear()
    assert update_index(indexed, 2) == len(RECORDS) + 1
    assert reads == [COMMIT_INDEX, commit_name("c", 0)], "of the others it had copies"
    indexed.delete(commit_name("c", 0))
    assert update_index(indexed, 2) == len(RECORDS)


def test_without_it_or_with_a_damaged_one_the_records_are_read_one_by_one(
    indexed: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    intact = indexed.read(COMMIT_INDEX)
    where = random.Random(0)
    broken = [b"", intact[:-5], intact[: len(intact) // 2], b"x" * 100]
    for _ in range(40):
        place = where.randrange(len(intact))
        broken.append(intact[:place] + bytes([intact[place] ^ 1 << where.randrange(8)]) + intact[place + 1 :])
    for data in broken:
        indexed.put(COMMIT_INDEX, data)
        assert read_commits(indexed, 2) == RECORDS
    assert "commits.parquet" in caplog.text
    assert "one by one" in caplog.text
    indexed.delete(COMMIT_INDEX)
    assert read_commits(indexed, 2) == RECORDS


def test_a_reader_who_may_not_read_it_reads_the_records(indexed: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read = type(indexed).read

    def refused(self: ObjectStore, name: str) -> bytes:
        if name == COMMIT_INDEX:
            raise AccessRefused(self.uri_of(name), "no")
        return read(self, name)

    monkeypatch.setattr(type(indexed), "read", refused)
    assert read_commits(indexed, 2) == RECORDS


def test_a_damaged_record_is_not_copied_and_named_by_who_reads_it(store: ObjectStore) -> None:
    for record in RECORDS:
        create_commit(store, record)
    name = commit_name("a", 1)
    store.put(name, store.read(name).replace(b'"stored":0', b'"stored":1'))
    assert update_index(store, 2) == len(RECORDS) - 1
    with pytest.raises(ObjectDamaged, match=name):
        read_commits(store, 2)


def test_verify_takes_it_for_part_of_the_cache_and_says_what_is_wrong_with_it(
    indexed: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> list[str]:
        return [finding.detail for finding in verify(indexed, 2).findings if finding.object == COMMIT_INDEX]

    assert found() == []
    copies = commit_index.read_index(indexed)
    other = copies[commit_name("a", 0)].record
    with monkeypatch.context() as patch:
        wrong = {**copies, commit_name("b", 1): replace(copies[commit_name("b", 1)], record=other)}
        patch.setattr("trio_ray.store.verify.read_index", lambda store: wrong)
        assert len(found()) == 1
        assert commit_name("b", 1) in found()[0]
    indexed.put(COMMIT_INDEX, b"none")
    findings = [finding for finding in verify(indexed, 2).findings if finding.object == COMMIT_INDEX]
    assert [finding.kind for finding in findings] == [FindingKind.RECORD]
    assert "delete it" in findings[0].detail
