"""`verify` finds and names whatever is not as it was written."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.caches import AWKWARD_KEYS, IDENTITY, kv_bytes, row, shard, write_part
from trio_ray.config import S3Config
from trio_ray.errors import AccessRefused
from trio_ray.store.commits import (
    CommitRecord,
    FooterRecord,
    RunRecord,
    create_commit,
)
from trio_ray.store.dataset import Dataset, create_or_check
from trio_ray.store.failures import FailureLog, FailureRecord
from trio_ray.store.findings import Finding, FindingKind
from trio_ray.store.layout import commit_name, data_folder, data_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store
from trio_ray.store.parts import PartWriter
from trio_ray.store.row_groups import write_row_groups
from trio_ray.store.tables import MemberKind, place_columns
from trio_ray.store.verify import verify


def build(store: ObjectStore, dataset: Dataset) -> list[CommitRecord]:
    """Two shards, one of two parts; every kind of object is there."""
    records = [
        write_part(store, dataset, 0, last=False),
        write_part(store, dataset, 1, keys=AWKWARD_KEYS),
        write_part(store, dataset, 0, keys=["other"], source=shard("train-00001.tar"), bad=0),
    ]
    run = RunRecord("run", "host", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00", "0.1.0")
    lost = shard("train-00002.tar")
    FailureLog(store, "run").add(FailureRecord(dataset.identity_hash, lost, 3, "the replica died", run))
    return [record for record in records if record]


def named(store: ObjectStore) -> set[tuple[str, str]]:
    """Kind and object of all damage."""
    return {(finding.kind.value, finding.object) for finding in verify(store, 2).findings if finding.is_damage}


def beside_the_given_up_shard(store: ObjectStore) -> list[Finding]:
    """What is found but for the shard that `build` has given up."""
    return [finding for finding in verify(store, 2).findings if finding.kind is not FindingKind.GIVEN_UP]


def test_a_sound_cache_has_no_findings_and_is_counted(store: ObjectStore, dataset: Dataset) -> None:
    records = build(store, dataset)
    report = verify(store, 2)
    ((kind, detail),) = [(finding.kind, finding.detail) for finding in report.findings]
    assert (kind, report.ok) == ("given up", False), "a shard that was given up is missing in the cache"
    assert "train-00002.tar after 3 attempts: the replica died; the next run tries it again" in detail
    FailureLog(store, "next").take_over(lambda failure: failure.shard.name == "train-00002.tar")
    report = verify(store, 2)
    assert report.findings == []
    assert report.ok
    assert (report.parts, report.samples, report.quarantined) == (3, 3 + len(AWKWARD_KEYS) + 1, 2)
    assert report.bytes == sum(file.size for record in records for file in record.files.values())
    assert report.incomplete == []


def test_a_flipped_byte_in_any_object_is_found_and_named(store: ObjectStore, dataset: Dataset) -> None:
    build(store, dataset)
    generator = random.Random(0)
    for info in list(store.list()):
        sound = store.read(info.name)
        position = generator.randrange(len(sound))
        damaged = bytearray(sound)
        damaged[position] ^= 1 << generator.randrange(8)
        store.put(info.name, damaged)
        assert info.name in {name for _, name in named(store)}, (info.name, position)
        store.put(info.name, sound)
    assert beside_the_given_up_shard(store) == []


def test_a_truncated_missing_or_grown_object_is_found_and_named(store: ObjectStore, dataset: Dataset) -> None:
    build(store, dataset)
    middle = commit_name("train-00000.tar", 0)
    for info in list(store.list()):
        sound = store.read(info.name)
        for damaged in (sound[: len(sound) // 2], b"", sound + b"\0"):
            store.put(info.name, damaged)
            assert info.name in {name for _, name in named(store)}, (info.name, len(damaged))
        store.delete(info.name)
        findings = beside_the_given_up_shard(store)
        if info.name.startswith("data/") or info.name == "dataset.json":
            assert [finding.object for finding in findings if finding.is_damage] == [info.name]
        elif info.name == middle:
            assert {finding.kind for finding in findings} == {FindingKind.GAP, FindingKind.ORPHAN}
        store.put(info.name, sound)
    assert beside_the_given_up_shard(store) == []


@pytest.fixture(scope="module")
def sound_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    store = open_store(str(folder), S3Config())
    build(store, create_or_check(store, IDENTITY, 4))
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_anywhere_goes_unseen_or_crashes(sound_cache: Path, data: st.DataObject) -> None:
    """Any object, any offset, any replacement: bytes overwritten, cut out or put in."""
    store = open_store(str(sound_cache), S3Config())
    name = data.draw(st.sampled_from(sorted(info.name for info in store.list())))
    sound = store.read(name)
    start = data.draw(st.integers(0, len(sound) - 1))
    cut = data.draw(st.integers(0, min(600, len(sound) - start)))
    put = data.draw(st.binary(max_size=600))
    damaged = sound[:start] + put + sound[start + cut :]
    if damaged == sound:
        return
    store.put(name, damaged)
    try:
        assert name in {finding.object for finding in verify(store, 1).findings if finding.is_damage}
    finally:
        store.put(name, sound)


@pytest.mark.parametrize(
    "name",
    [
        "README.txt",
        "data/train-00000.tar/notes.txt",
        "data/x.parquet",
        "commits/x.json",
        "commits/d/s/1.json",
        "other/y",
    ],
)
def test_a_foreign_object_is_found_and_named(store: ObjectStore, dataset: Dataset, name: str) -> None:
    build(store, dataset)
    store.put(name, b"what is this")
    assert named(store) == {("foreign", name)}


def test_what_a_dead_attempt_left_is_reported_but_is_no_damage(store: ObjectStore, dataset: Dataset) -> None:
    build(store, dataset)
    store.put(data_name("train-00000.tar", 1, "deadbeef", "samples"), b"half a table")
    store.put(data_name("train-00009.tar", 0, "deadbeef", "tar"), b"half a tar")
    assert {(finding.kind.value, finding.object) for finding in beside_the_given_up_shard(store)} == {
        ("orphan", data_name("train-00000.tar", 1, "deadbeef", "samples")),
        ("orphan", data_name("train-00009.tar", 0, "deadbeef", "tar")),
    }


def test_a_flipped_byte_in_a_prefix_names_its_sample(store: ObjectStore, dataset: Dataset) -> None:
    build(store, dataset)
    tar = next(info.name for info in store.list(data_folder("train-00000.tar", 1)) if info.name.endswith(".tar"))
    data = bytearray(store.read(tar))
    position = data.index(kv_bytes("a/slash", 3200))
    data[position + 77] ^= 4
    store.put(tar, data)
    findings = beside_the_given_up_shard(store)
    assert [(finding.kind.value, finding.key) for finding in findings] == [
        ("member", "a/slash"),
        ("checksum", None),
    ]


def _committed(
    store: ObjectStore, dataset: Dataset, change: Callable[[CommitRecord], CommitRecord], keys: list[str]
) -> str:
    """A part whose record was changed and signed again: only its own contradictions can give it away."""
    record = write_part(store, dataset, 0, keys=keys)
    assert record is not None
    store.delete(commit_name(record.shard.name, 0))
    create_commit(store, change(record))
    return commit_name(record.shard.name, 0)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda record: replace(record, stored=3), "table"),
        (lambda record: replace(record, quarantined=7), "table"),
        (lambda record: replace(record, quarantined=0), "record"),
        (lambda record: replace(record, identity_hash="0" * 64), "identity"),
        (lambda record: replace(record, files={"samples": record.files["samples"]}), "record"),
        (lambda record: replace(record, attempt="another"), "record"),
        (lambda record: replace(record, files={**record.files, "tar": record.files["samples"]}), "record"),
        (lambda record: replace(record, statistics=replace(record.statistics, image_tokens=1)), "record"),
        (lambda record: replace(record, statistics=replace(record.statistics, device_s=1.0)), "record"),
        (lambda record: replace(record, statistics=replace(record.statistics, reasons={"text_empty": 1})), "record"),
    ],
)
def test_a_record_that_contradicts_its_files_is_found(
    store: ObjectStore, dataset: Dataset, change: Callable[[CommitRecord], CommitRecord], kind: str
) -> None:
    _committed(store, dataset, change, ["a", "b"])
    assert kind in {finding for finding, _ in named(store)}


def test_a_row_that_points_elsewhere_is_found(store: ObjectStore, dataset: Dataset) -> None:
    record = write_part(store, dataset, keys=["a", "b", "c"])
    assert record is not None
    file = record.files["samples"]
    table = pq.read_table(io.BytesIO(store.read(file.name)))
    for column, values in {
        "kv_offset": [table["kv_offset"][1].as_py() - 512, 5 << 40, -3],
        "kv_length": [0, 5 << 40, -1, 2999],
        "kv_object": ["data/elsewhere.tar"],
        "kv_checksum": ["0" * 32],
        "key": ["another"],
    }.items():
        for value in values:
            rows = table.to_pylist()
            rows[1][column] = value
            _replace_samples(store, record, rows, table.schema)
            damage = [finding for finding in verify(store, 1).findings if finding.is_damage]
            assert [(finding.kind.value, finding.object) for finding in damage][:1] == [
                ("member", record.files["tar"].name)
            ], (column, value)


def test_a_row_with_half_a_place_or_none_beside_others_is_found(store: ObjectStore, dataset: Dataset) -> None:
    record = write_part(store, dataset, keys=["a", "b", "c"])
    assert record is not None
    table = pq.read_table(io.BytesIO(store.read(record.files["samples"].name)))
    kv = place_columns("kv")
    for missing, kind in ((kv[1:], "table"), (kv[2:3], "table"), (kv, "member")):
        rows = table.to_pylist()
        rows[1].update(dict.fromkeys(missing))
        _replace_samples(store, record, rows, table.schema)
        assert kind in {found for found, _ in named(store)}, missing


@pytest.mark.parametrize("kind", ["embeds", None])
def test_parts_of_other_levels_are_held_against_their_rows_too(
    store: ObjectStore, dataset: Dataset, kind: MemberKind | None
) -> None:
    record = write_part(store, dataset, keys=AWKWARD_KEYS, kind=kind)
    assert record is not None
    assert set(record.files) == {"samples", "locators", "quarantine", *["tar"] * (kind is not None)}
    assert verify(store, 1).findings == []
    table = pq.read_table(io.BytesIO(store.read(record.files["samples"].name)))
    rows = table.to_pylist()
    other = rows[0] | {"kv_object": "data/x.tar", "kv_offset": 512, "kv_length": 3, "kv_checksum": "0" * 32}
    _replace_samples(store, record, [other, *rows[1:]], table.schema)
    assert ("member", record.files["samples"].name) in named(store)


def test_a_tar_member_without_a_row_is_found(store: ObjectStore, dataset: Dataset) -> None:
    record = write_part(store, dataset, keys=["a", "b", "c"])
    assert record is not None
    table = pq.read_table(io.BytesIO(store.read(record.files["samples"].name)))
    for missing in range(3):
        rows = [row for number, row in enumerate(table.to_pylist()) if number != missing]
        _replace_samples(store, replace(record, stored=2), rows, table.schema)
        assert ("member", record.files["tar"].name) in named(store)


def _replace_samples(store: ObjectStore, record: CommitRecord, rows: list[dict[str, object]], schema: object) -> None:
    """Put another table in place of a part's, and a fitting commit record."""
    data, footer_bytes = write_row_groups(pa.Table.from_pylist(rows, schema))
    footer = FooterRecord(footer_bytes, xxhash.xxh3_128_hexdigest(data[-footer_bytes:]))
    old = record.files["samples"]
    store.put(old.name, data)
    new = replace(old, size=len(data), checksum=xxhash.xxh3_128_hexdigest(data))
    store.delete(commit_name(record.shard.name, record.part))
    create_commit(store, replace(record, files={**record.files, "samples": new}, footer=footer))


def test_a_key_or_index_that_is_twice_in_a_shard_is_found(store: ObjectStore, dataset: Dataset) -> None:
    write_part(store, dataset, 0, keys=["a", "b"], last=False)
    record = write_part(store, dataset, 1, keys=["c", "a"])
    write_part(store, dataset, 0, keys=["a"], source=shard("another-shard"))
    assert record is not None
    duplicates = [finding for finding in verify(store, 2).findings if finding.is_damage]
    assert [(finding.kind.value, finding.object, finding.key) for finding in duplicates] == [
        ("duplicate", record.files["samples"].name, "a")
    ]


def test_parts_with_a_gap_or_beyond_the_end_are_found(store: ObjectStore, dataset: Dataset) -> None:
    write_part(store, dataset, 0, last=True)
    write_part(store, dataset, 3, last=False)
    assert named(store) == {("gap", commit_name(shard().name, 0)), ("gap", commit_name(shard().name, 3))}
    assert verify(store, 2).incomplete == [shard().name]


def test_an_unfinished_job_is_sound_and_its_open_shards_are_listed(store: ObjectStore, dataset: Dataset) -> None:
    write_part(store, dataset, 0, last=False)
    writer = PartWriter(store, dataset, shard(), 1, "run")
    writer.add(row("running", 1000), bytes(6 << 20))
    report = verify(store, 2)
    writer.abort()
    assert report.findings == []
    assert report.incomplete == [shard().name]


def test_a_folder_of_something_else_is_all_foreign(store: ObjectStore) -> None:
    store.put("holiday.jpg", b"\xff\xd8")
    assert named(store) == {("dataset", "dataset.json"), ("foreign", "holiday.jpg")}


def test_a_table_of_other_columns_or_none_at_all_is_found(store: ObjectStore, dataset: Dataset) -> None:
    record = write_part(store, dataset, keys=["a"])
    assert record is not None
    table = pq.read_table(io.BytesIO(store.read(record.files["samples"].name)))
    name = record.files["samples"].name
    _replace_samples(store, record, [{"key": "a"}], pa.schema([("key", pa.string())]))
    assert ("table", name) in named(store)
    unstamped = table.schema.with_metadata({})
    _replace_samples(store, record, table.to_pylist(), unstamped)
    assert named(store) == {("table", name)}
    store.put(name, b"PAR1 is no table")
    garbage = replace(record.files["samples"], size=16, checksum=xxhash.xxh3_128_hexdigest(b"PAR1 is no table"))
    store.delete(commit_name(record.shard.name, 0))
    create_commit(store, replace(record, files={**record.files, "samples": garbage}))
    assert named(store) == {("table", name)}


def test_a_failure_record_of_another_cache_or_with_damage_is_found(store: ObjectStore, dataset: Dataset) -> None:
    run = RunRecord("run", "host", "2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:01.000+00:00", "0.1.0")
    FailureLog(store, "run").add(FailureRecord("0" * 64, shard("s"), 3, "it died", run))
    assert named(store) == {("identity", "failures/run.json")}
    store.put("failures/run.json", b"{}")
    assert named(store) == {("record", "failures/run.json")}


def test_what_the_store_refuses_to_give_is_a_finding_and_no_crash(
    store: ObjectStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = build(store, dataset)

    def refuse(self: ObjectStore, name: str) -> bytes:
        raise AccessRefused(self.uri_of(name), "no permission")

    monkeypatch.setattr(type(store), "open", refuse)
    tars = {record.files["tar"].name for record in records}
    assert named(store) == {("unreadable", name) for name in tars}
    monkeypatch.setattr(type(store), "read", refuse)
    everything = {info.name for info in store.list()}
    assert {name for kind, name in named(store) if kind == "unreadable"} == {
        name for name in everything if not name.startswith("data/")
    }


def test_a_table_that_cannot_be_read_is_a_finding(
    store: ObjectStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = write_part(store, dataset)
    assert record is not None
    read = type(store).read

    def refuse_tables(self: ObjectStore, name: str) -> bytes:
        if name.endswith(".parquet"):
            raise AccessRefused(self.uri_of(name), "no permission")
        return read(self, name)

    monkeypatch.setattr(type(store), "read", refuse_tables)
    assert named(store) == {
        ("unreadable", record.files["samples"].name),
        ("unreadable", record.files["quarantine"].name),
    }
