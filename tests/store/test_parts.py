"""Parts: written once, read by anybody's tools, committed by exactly one attempt."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash

from tests.store.caches import AWKWARD_KEYS, kv_bytes, row, shard, write_part
from trio_ray.errors import ObjectMissing, StoreError
from trio_ray.store.commit_table import read_commits
from trio_ray.store.commits import read_commit
from trio_ray.store.dataset import SCHEMA_VERSION, Dataset
from trio_ray.store.layout import commit_name, data_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.parts import PartWriter
from trio_ray.store.tables import QUARANTINE, SAMPLES
from trio_ray.store.tar_members import member_name


def test_one_range_read_fetches_a_sample_and_its_checksum_fits(store: ObjectStore, dataset: Dataset) -> None:
    record = write_part(store, dataset, keys=AWKWARD_KEYS)
    assert record is not None
    rows = pq.read_table(io.BytesIO(store.read(record.files["samples"].name))).to_pylist()
    assert [row["key"] for row in rows] == AWKWARD_KEYS
    for number, stored in enumerate(rows):
        kv = store.read_range(stored["kv_object"], stored["kv_offset"], stored["kv_length"])
        assert kv == kv_bytes(stored["key"], 3000 + 100 * number)
        assert stored["kv_checksum"] == xxhash.xxh3_128_hexdigest(kv)
        assert {**row(stored["key"], number), "retention": stored["retention"]}.items() <= stored.items()


def test_plain_webdataset_yields_every_sample_under_its_own_key(
    store: ObjectStore, dataset: Dataset, tmp_path: Path
) -> None:
    record = write_part(store, dataset, keys=AWKWARD_KEYS)
    assert record is not None
    local = tmp_path / "part.tar"
    local.write_bytes(store.read(record.files["tar"].name))
    samples = list(webdataset.WebDataset(str(local), shardshuffle=False))
    assert [sample["kv.safetensors"] for sample in samples] == [
        kv_bytes(key, 3000 + 100 * number) for number, key in enumerate(AWKWARD_KEYS)
    ]
    assert len({sample["__key__"] for sample in samples}) == len(AWKWARD_KEYS)
    with tarfile.open(local) as tar:  # and the standard library extracts it to a folder
        tar.extractall(tmp_path / "out", filter="data")
    assert len(list((tmp_path / "out").iterdir())) == len(AWKWARD_KEYS)


def test_member_names_differ_for_keys_that_only_look_alike() -> None:
    keys = [
        "a.b",
        "a%2Eb",
        "a/b",
        "a%2Fb",
        "A.b",
        "",
        "~",
        "%7E",
        "k" * 300,
        "k" * 301,
        "k" * 200,
        "é",
        "e\u0301",
    ]
    names = {member_name(key, "kv") for key in keys}
    assert len(names) == len(keys)
    assert all(len(name.encode()) <= 255 and name.count(".") == 2 and "/" not in name for name in names)


def test_tables_carry_the_schema_its_version_and_the_identity(store: ObjectStore, dataset: Dataset) -> None:
    record = write_part(store, dataset, bad=2)
    assert record is not None
    for kind, schema, rows in (("samples", SAMPLES, 3), ("quarantine", QUARANTINE, 2)):
        table = pq.read_table(io.BytesIO(store.read(record.files[kind].name)))  # type: ignore[index]
        assert table.schema.equals(schema, check_metadata=False)
        assert table.schema.metadata[b"trio_ray.identity_hash"].decode() == dataset.identity_hash
        assert table.schema.metadata[b"trio_ray.schema_version"] == str(SCHEMA_VERSION).encode()
        assert table.num_rows == rows


def test_a_record_says_what_the_files_are(store: ObjectStore, dataset: Dataset) -> None:
    record = write_part(store, dataset, part=7, last=False, bad=2)
    assert record is not None
    assert read_commit(store, record.shard.name, 7) == record
    assert (record.stored, record.quarantined, record.last) == (3, 2, False)
    assert record.shard == shard()
    sums = record.statistics
    assert (sums.image_tokens, sums.held_tokens) == (3 * 2340, pytest.approx(3 * 2340 * 0.111))
    assert (sums.member_bytes, sums.device_s) == (3000 + 3100 + 3200, pytest.approx(0.0375))
    assert sums.reasons == {"image_corrupt": 2}
    for file in record.files.values():
        data = store.read(file.name)
        assert (len(data), xxhash.xxh3_128_hexdigest(data)) == (file.size, file.checksum)


def test_a_part_may_be_empty_or_all_bad(store: ObjectStore, dataset: Dataset) -> None:
    empty = write_part(store, dataset, part=0, keys=[], bad=0, last=False)
    all_bad = write_part(store, dataset, part=1, keys=[], bad=5)
    assert empty is not None
    assert all_bad is not None
    assert set(empty.files) == {"samples"}
    assert set(all_bad.files) == {"samples", "quarantine"}
    assert pq.read_table(io.BytesIO(store.read(empty.files["samples"].name))).num_rows == 0


def test_of_racing_attempts_one_commits_and_the_others_files_are_gone(store: ObjectStore, dataset: Dataset) -> None:
    writers = [PartWriter(store, dataset, shard(), 0, f"run-{number}") for number in range(3)]
    for number, writer in enumerate(writers):
        writer.add(row(f"by-{number}", 0), kv_bytes("k"))
        writer.quarantine("bad", 1, "image_corrupt", "cannot be decoded")
    with ThreadPoolExecutor(3) as pool:
        records = [record for record in pool.map(lambda writer: writer.commit(True), writers) if record]
    assert len(records) == 1
    assert read_commits(store, 2) == records
    names = {info.name for info in store.list("data/")}
    assert names == {file.name for file in records[0].files.values()}


def test_a_writer_counts_bad_samples_by_reason(store: ObjectStore, dataset: Dataset) -> None:
    writer = PartWriter(store, dataset, shard(), 0, "run")
    assert writer.reasons == {}
    for index, reason in enumerate(("image_empty", "text_empty", "image_empty")):
        writer.quarantine(f"bad-{index}", index, reason, "detail")
    assert writer.reasons == {"image_empty": 2, "text_empty": 1}
    assert writer.quarantined == 3


def test_an_aborted_attempt_leaves_nothing_and_the_next_one_commits(store: ObjectStore, dataset: Dataset) -> None:
    writer = PartWriter(store, dataset, shard(), 0, "run")
    writer.add(row("a", 0), bytes(6 << 20))
    assert (writer.stored, writer.quarantined) == (1, 0)
    assert writer.tar_bytes > 6 << 20
    writer.abort()
    assert [info.name for info in store.list()] == ["dataset.json"]
    assert list(store.list_unfinished()) == []
    assert write_part(store, dataset) is not None


def test_a_row_with_missing_or_unknown_columns_is_refused_before_anything_is_written(
    store: ObjectStore, dataset: Dataset
) -> None:
    writer = PartWriter(store, dataset, shard(), 0, "run")
    incomplete = {name: value for name, value in row("a", 0).items() if name != "codec"}
    with pytest.raises(ValueError, match=r"'a' lacks \['codec'\]"):
        writer.add(incomplete, b"kv")
    with pytest.raises(ValueError, match=r"unknown \['colour'\]"):
        writer.add({**row("a", 0), "colour": 1}, b"kv")
    assert writer.tar_bytes == 0


def test_a_value_that_does_not_fit_its_column_commits_nothing(store: ObjectStore, dataset: Dataset) -> None:
    writer = PartWriter(store, dataset, shard(), 0, "run")
    writer.add({**row("a", 0), "prompt_tokens": "many"}, b"kv")
    with pytest.raises(pa.ArrowException):
        writer.commit(True)
    assert [info.name for info in store.list()] == ["dataset.json"]


def test_files_stay_when_the_answer_to_the_commit_is_lost(
    store: ObjectStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record may be there although nobody told us; deleting its files would destroy a committed part."""
    create = type(store).create

    def create_and_lose_the_answer(self: ObjectStore, name: str, data: bytes) -> bool:
        create(self, name, data)
        raise StoreError(self.uri_of(name), "connection lost")

    writer = PartWriter(store, dataset, shard(), 0, "run")
    writer.add(row("a", 0), b"kv")
    monkeypatch.setattr(type(store), "create", create_and_lose_the_answer)
    with pytest.raises(StoreError, match="connection lost"):
        writer.commit(True)
    record = read_commit(store, shard().name, 0)
    assert all(store.stat(file.name).size == file.size for file in record.files.values())


def test_the_layout_is_the_documented_one(store: ObjectStore, dataset: Dataset) -> None:
    writer = PartWriter(store, dataset, shard("s1"), 3, "run", attempt="abc123")
    writer.add(row("a", 0), b"kv")
    writer.quarantine("b", 1, "image_corrupt", "cannot be decoded")
    writer.commit(True)
    assert [info.name for info in store.list()] == [
        "commits/9/s1/00003.json",
        "data/7d/s1/00003-abc123.locators",
        "data/7d/s1/00003-abc123.parquet",
        "data/7d/s1/00003-abc123.quarantine.parquet",
        "data/7d/s1/00003-abc123.tar",
        "dataset.json",
    ]
    assert commit_name("s1", 3) == "commits/9/s1/00003.json"
    assert data_name("s1", 3, "abc123", "tar") == "data/7d/s1/00003-abc123.tar"
    with pytest.raises(ObjectMissing):
        read_commit(store, "s1", 4)
