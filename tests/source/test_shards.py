"""From input files to units of work."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.source.corpus import LocalOpener, encoded, tar_of
from trio_ray.config import SourceConfig
from trio_ray.errors import ConfigError, ObjectMissing
from trio_ray.source.shards import split_file


def names(uri: str, config: SourceConfig | None = None) -> list[str]:
    return [shard.name for shard in split_file(uri, 1, "e", config or SourceConfig(), LocalOpener())]


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "TAR"])
def test_a_tar_is_one_unit_and_is_not_opened(ending: str) -> None:
    (shard,) = split_file(f"s3://b/x/00001.{ending}", 123, "tag", SourceConfig(), LocalOpener())
    assert (shard.format, shard.rows, shard.size, shard.etag) == ("webdataset", None, 123, "tag")
    assert shard.uri == f"s3://b/x/00001.{ending}"


def test_an_unknown_ending_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"source.format: .*data.csv"):
        names("s3://b/data.csv")


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("a.jsonl.gz", "unpack it first"), ("A.JSON.GZ", "unpack it first"), ("a.jsonl.zst", "unpack it first"),
        ("images.zip", "unpack it first"), ("MMBench_DEV_EN.tsv", "to_parquet"), ("train.csv", "to_parquet"),
        ("data-00000.arrow", "to_parquet"),
    ],
)  # fmt: skip
def test_a_file_that_corpora_come_in_and_that_is_not_read_is_refused_with_its_cure(name: str, cure: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is not read as it is .*{cure}") as caught:
        split_file(name, 1, "", SourceConfig(), LocalOpener())
    assert caught.value.field == "source.format"


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_text_that_gzip_has_packed_is_refused_whatever_its_name_says(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(gzip.compress(b'{"image": "a.png", "text": "t"}\n'))
    with pytest.raises(ConfigError, match=r"is packed by gzip; unpack it first"):
        split_file(str(path), path.stat().st_size, "", SourceConfig(), LocalOpener())


def test_the_format_of_the_settings_wins_over_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    path.write_bytes(tar_of([{"__key__": "a", "jpg": encoded(), "txt": b"t"}]))
    (shard,) = split_file(str(path), 1, "e", SourceConfig(format="webdataset"), LocalOpener())
    assert shard.format == "webdataset"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/x y/ü%20.tar",
        "s3://b/..tar",
        "/a/-rf.tar",
        "s3://b/" + "n" * 300 + ".tar",
        "s3://b/a\udcff.tar",
    ],
)
def test_names_are_safe_as_folders_and_stable(uri: str) -> None:
    (name,) = names(uri)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name)
    assert names(uri) == [name]


def test_names_differ_where_only_the_folder_does_and_tell_the_file() -> None:
    first, second = names("s3://b/train/00001.tar") + names("s3://b/val/00001.tar")
    assert first != second
    assert first.startswith("00001-")


def test_names_do_not_change_between_versions() -> None:
    """A cache is resumed by these names, so a change of the rule loses what is done."""
    assert names("s3://bucket/train/00001.tar") == ["00001-73cbdac543970008"]


@pytest.mark.parametrize(("rows", "runs"), [(0, [(0, 0)]), (1, [(0, 1)]), (4, [(0, 4)]), (9, [(0, 4), (4, 8), (8, 9)])])
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "ndjson"])
def test_runs_cover_every_row_once(tmp_path: Path, kind: str, rows: int, runs: list[tuple[int, int]]) -> None:
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        pq.write_table(
            pa.table({"image": pa.array([b"x"] * rows, pa.binary()), "text": pa.array(["t"] * rows, pa.string())}),
            path,
        )
    else:
        path.write_text("{}\n" * rows)
    shards = split_file(str(path), 7, "e", SourceConfig(rows_per_shard=4), LocalOpener())
    assert [shard.rows for shard in shards] == runs
    assert len({shard.name for shard in shards}) == len(shards)
    assert {(shard.uri, shard.size, shard.etag) for shard in shards} == {(str(path), 7, "e")}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_file_that_the_store_does_not_give_is_not_a_damaged_one(kind: str) -> None:
    with pytest.raises(ObjectMissing):
        names(f"/nowhere/data.{kind}")
