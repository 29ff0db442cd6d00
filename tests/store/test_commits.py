"""Commit and failure records, and what a resumed job learns from them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.store.caches import shard, write_part
from trio_ray.errors import ObjectDamaged
from trio_ray.store.commit_table import read_commits
from trio_ray.store.commits import (
    CommitRecord,
    FileRecord,
    FooterRecord,
    PartStatistics,
    RunRecord,
    create_commit,
    read_commit,
)
from trio_ray.store.dataset import SCHEMA_VERSION, Dataset
from trio_ray.store.layout import FileKind, commit_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.record import dump_record, load_record

RUN = RunRecord("run", "host", "2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:01.000+00:00", "0.1.0")


def commit(shard_name: str, part: int, last: bool = False) -> CommitRecord:
    files: dict[FileKind, FileRecord] = {"samples": FileRecord(f"data/{shard_name}/{part:05d}-a.parquet", 1, "0" * 32)}
    source = replace(shard(shard_name), rows=(0, 9))
    sums = PartStatistics(0, 0.0, 0, 0.0, {})
    footer = FooterRecord(1, "0" * 32)
    return CommitRecord(SCHEMA_VERSION, "f" * 64, source, part, "a", last, 0, 0, sums, files, footer, RUN, "host GPU 0")


def test_progress_says_which_parts_are_done_and_of_which_input(store: ObjectStore) -> None:
    for name, part, last in [
        ("a", 0, False),
        ("a", 1, False),
        ("b", 0, True),
        ("c", 0, False),
        ("c", 1, True),
    ]:
        assert create_commit(store, commit(name, part, last))
    progress = read_commits(store, 4).progress()
    assert {name: (sorted(of.parts), of.complete) for name, of in progress.items()} == {
        "a": ([0, 1], False),
        "b": ([0], True),
        "c": ([0, 1], True),
    }
    source = progress["a"].source
    assert (source.uri, source.etag, source.size, source.rows) == ("s3://corpus/a", "e1", 1234, (0, 9))
    assert progress["a"].damage is None
    assert len(read_commits(store, 4)) == 5


def test_a_new_cache_has_no_progress(store: ObjectStore, dataset: Dataset) -> None:
    assert read_commits(store, 2).progress() == {}
    assert read_commits(store, 2) == []


def test_a_part_is_committed_once(store: ObjectStore) -> None:
    assert create_commit(store, commit("a", 0))
    assert not create_commit(store, replace(commit("a", 0), attempt="b"))
    assert read_commit(store, "a", 0).attempt == "a"


def test_a_damaged_or_misplaced_record_is_named(store: ObjectStore, dataset: Dataset) -> None:
    record = write_part(store, dataset)
    assert record is not None
    name = commit_name(record.shard.name, 0)
    sound = store.read(name)
    fields = load_record(sound, "uri")
    missing_field = {key: value for key, value in fields.items() if key != "stored"}
    for damaged in (
        sound.replace(b'"stored":3', b'"stored":4'),
        dump_record({**fields, "part": 1}),
        dump_record({**fields, "schema_version": 9}),
        dump_record({**fields, "colour": "red"}),
        dump_record({**fields, "files": []}),
        dump_record({**fields, "shard": {"name": "x"}}),
        dump_record({**fields, "shard": {**fields["shard"], "rows": [1, 2, 3]}}),
        dump_record(missing_field),
    ):
        store.put(name, damaged)
        with pytest.raises(ObjectDamaged, match=name):
            read_commits(store, 2)
