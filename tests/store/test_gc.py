"""Garbage collection: what no commit references goes, everything else stays."""

from __future__ import annotations

import time

import pytest

from tests.store.caches import kv_bytes, row, shard, write_part
from trio_ray.errors import ObjectDamaged
from trio_ray.store.bases import store_basis
from trio_ray.store.commit_table import read_commits
from trio_ray.store.dataset import Dataset, NotACacheError, create_or_check
from trio_ray.store.gc import collect_garbage
from trio_ray.store.layout import basis_name, commit_name, data_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.parts import PartWriter
from trio_ray.store.verify import verify

ORPHANS = [data_name("train-00000.tar", 0, "dead", "samples"), data_name("train-00007.tar", 3, "dead", "tar")]


def _leave_behind(store: ObjectStore, dataset: Dataset) -> PartWriter:
    """A sound part, two orphans, and an upload that never ended."""
    assert write_part(store, dataset, last=False) is not None
    for name in ORPHANS:
        store.put(name, b"left behind")
    unfinished = PartWriter(store, dataset, shard(), 1, "dead-run", attempt="unfinished")
    unfinished.add(row("a", 1000), kv_bytes("a", 6 << 20))
    time.sleep(1.1)  # S3 counts whole seconds
    return unfinished


def test_orphans_and_unfinished_writes_go_and_the_cache_stays_sound(store: ObjectStore, dataset: Dataset) -> None:
    unfinished = _leave_behind(store, dataset)
    store.put("notes.txt", b"a foreign object is not ours to delete")
    found = collect_garbage(store, 0.0, dry_run=True)
    assert {info.name for info in found} > set(ORPHANS)
    assert len(found) == 3
    assert store.read(ORPHANS[0]) == b"left behind"

    removed = collect_garbage(store, 0.0, dry_run=False)
    assert {info.name for info in removed} == {info.name for info in found}
    assert list(store.list_unfinished()) == []
    assert {info.name for info in store.list("data/")} == {
        file.name for record in read_commits(store, 1) for file in record.files.values()
    }
    assert [finding.object for finding in verify(store, 1).findings] == ["notes.txt"]
    assert collect_garbage(store, 0.0, dry_run=False) == []
    unfinished.abort()


def test_nothing_young_is_touched(store: ObjectStore, dataset: Dataset) -> None:
    """It may belong to an attempt that is about to commit."""
    unfinished = _leave_behind(store, dataset)
    assert collect_garbage(store, 3600.0, dry_run=False) == []
    assert unfinished.commit(True) is not None
    assert verify(store, 1).ok


def test_a_damaged_record_stops_it_before_anything_is_removed(store: ObjectStore, dataset: Dataset) -> None:
    _leave_behind(store, dataset).abort()
    store.put(commit_name("train-00000.tar", 0), b"{}")
    before = {info.name for info in store.list()}
    with pytest.raises(ObjectDamaged, match=r"00000\.json"):
        collect_garbage(store, 0.0, dry_run=False)
    assert {info.name for info in store.list()} == before


def test_a_basis_that_the_identity_does_not_name_goes_and_its_own_stays(store: ObjectStore) -> None:
    """Of two racing runs that calibrate, the second leaves one behind."""
    own = store_basis(store, b"its own")
    orphan = basis_name(store_basis(store, b"of the run that came too late"))
    create_or_check(store, {"cache": {"codec": {"name": "transform", "basis": own}}}, 4)
    time.sleep(1.1)  # S3 counts whole seconds
    assert collect_garbage(store, 3600.0, dry_run=False) == []
    assert [info.name for info in collect_garbage(store, 0.0, dry_run=False)] == [orphan]
    assert [info.name for info in store.list("codec/")] == [basis_name(own)]


def test_a_folder_that_is_no_cache_is_left_alone(store: ObjectStore) -> None:
    """A slip in its path must not cost another program its files, be they called as ours."""
    names = sorted([data_name("train", 0, "a1", "tar"), data_name("train", 1, "abc", "samples")])
    for name in names:
        store.put(name, b"of another program")
    time.sleep(1.1)
    with pytest.raises(NotACacheError):
        collect_garbage(store, 0.0, dry_run=False)
    orphan = basis_name(store_basis(store, b"of a run that got no further"))
    time.sleep(1.1)
    assert [info.name for info in collect_garbage(store, 0.0, dry_run=False)] == [orphan]
    assert sorted(info.name for info in store.list("data/")) == names


def test_a_basis_without_a_cache_goes(store: ObjectStore) -> None:
    """A job was ended between calibrating and making its cache."""
    orphan = basis_name(store_basis(store, b"of a run that got no further"))
    time.sleep(1.1)
    assert [info.name for info in collect_garbage(store, 0.0, dry_run=False)] == [orphan]


def test_of_a_cache_that_has_lost_its_manifest_nothing_is_garbage(store: ObjectStore) -> None:
    """Its basis is what all its prefixes are decompressed with."""
    dataset = create_or_check(store, {"cache": {"codec": {"basis": store_basis(store, b"its own")}}}, 4)
    assert write_part(store, dataset, last=True) is not None
    store.delete("dataset.json")
    before = {info.name for info in store.list()}
    with pytest.raises(NotACacheError):
        collect_garbage(store, 0.0, dry_run=False)
    assert {info.name for info in store.list()} == before
