"""What is damaged is set aside, part by part, and nothing else is touched."""

from __future__ import annotations

import time

import pytest

from tests.store.caches import shard, write_part
from trio_ray.store.dataset import Dataset
from trio_ray.store.findings import FindingKind
from trio_ray.store.gc import collect_garbage
from trio_ray.store.layout import aside_name, commit_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.repair import repair
from trio_ray.store.verify import verify

NAME = shard().name


@pytest.mark.parametrize("fault", ["flipped tar", "lost table", "cut record"])
def test_exactly_the_damaged_part_is_set_aside_and_gc_removes_what_is_left_of_it(
    store: ObjectStore, dataset: Dataset, fault: str
) -> None:
    records = [write_part(store, dataset, part, last=part == 2) for part in range(3)]
    assert all(records)
    files = records[1].files  # type: ignore[union-attr]
    if fault == "flipped tar":
        data = bytearray(store.read(files["tar"].name))
        data[1500] ^= 1
        store.put(files["tar"].name, data)
    elif fault == "lost table":
        store.delete(files["samples"].name)
    else:
        store.put(commit_name(NAME, 1), store.read(commit_name(NAME, 1))[:50])
    record = store.read(commit_name(NAME, 1))

    done = repair(store, verify(store, 1).findings)
    assert (done.parts, done.left) == ([(NAME, 1)], [])
    assert store.read(aside_name(NAME, 1)) == record, "so that it can be put back by hand"
    kinds = {finding.kind for finding in verify(store, 1).findings}
    assert kinds == {FindingKind.GAP, FindingKind.ORPHAN}
    assert repair(store, verify(store, 1).findings).parts == [], "a gap is what the next run fills"

    assert write_part(store, dataset, 1, last=False) is not None
    report = verify(store, 1)
    assert report.ok
    assert {finding.kind for finding in report.findings} == {FindingKind.ORPHAN}
    time.sleep(1.1)  # S3 counts whole seconds
    collect_garbage(store, 0.0, dry_run=False)
    assert verify(store, 1).findings == []


def test_what_no_run_can_make_again_is_named_and_left(store: ObjectStore, dataset: Dataset) -> None:
    assert write_part(store, dataset) is not None
    store.put("notes.txt", b"somebody's")
    store.put("dataset.json", b"{}")
    before = {info.name for info in store.list()}
    done = repair(store, verify(store, 1).findings)
    assert {finding.object for finding in done.left} == {"notes.txt", "dataset.json"}
    assert {info.name for info in store.list()} == before
