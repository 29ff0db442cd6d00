"""A cache without this package: DuckDB, pandas, `datasets` and pyarrow read the tables, `webdataset` the tars."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.dataset
import pyarrow.fs
import pytest
import webdataset

from tests.cache.caches import CODEC, prefix_of, write_cache
from tests.kv.prefixes import assert_same, codec_of
from tests.seaweed import S3Server
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.kv.container import checksum
from trio_ray.kv.restore import read_container

PARTS = [[6, 3], [5]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plain") / "cache"
    write_cache(folder, PARTS)
    return str(folder)


@pytest.fixture
def cache(made: str) -> PrunedCache:
    return PrunedCache(made)


def committed(cache: PrunedCache, kind: str) -> list[str]:
    """The files that count, in the order of parts: what a reader without us finds in the commit records."""
    return [f"{cache.uri}/{commit.files[kind].name}" for commit in cache.commits]  # type: ignore[index]


def test_duckdb_reads_kept_indices_and_where_the_bytes_lie(cache: PrunedCache) -> None:
    rows = duckdb.execute(
        "SELECT key, kept, [len(point) for point in kept] FROM read_parquet(?) ORDER BY key",
        [committed(cache, "samples")],
    ).fetchall()
    table = {row["key"]: row["kept"] for row in cache.table.to_pylist()}
    assert {key: kept for key, kept, _ in rows} == table
    assert all(counts == [len(point) for point in table[key]] for key, _, counts in rows)
    (total,) = duckdb.execute("SELECT sum(kv_length) FROM read_parquet(?)", [committed(cache, "samples")]).fetchall()
    assert total == (sum(cache.table.column("kv_length").to_pylist()),)


def test_duckdb_counts_reasons_and_joins_the_quarantine_with_what_is_stored(cache: PrunedCache) -> None:
    bad = committed(cache, "quarantine")
    query = "SELECT reason, count(*) FROM read_parquet(?) GROUP BY reason"
    assert duckdb.execute(query, [bad]).fetchall() == [("image_corrupt", 3)]
    query = """
        SELECT coalesce(s.key, q.key), q.reason
        FROM read_parquet(?) AS s FULL JOIN read_parquet(?) AS q ON s.key = q.key AND s.index = q.index
    """
    rows = duckdb.execute(query, [committed(cache, "samples"), bad]).fetchall()
    assert sorted(key for key, reason in rows if reason is None) == sorted(cache.keys())
    assert sorted(key for key, reason in rows if reason) == sorted(cache.quarantine.column("key").to_pylist())


def test_duckdb_finds_the_files_that_count_in_the_commit_records(cache: PrunedCache) -> None:
    """In SQL alone, and past what a dead attempt has left behind."""
    left = Path(cache.uri) / cache.commits[0].files["samples"].name
    left.with_name("00000-dead.parquet").write_bytes(b"no table")
    with duckdb.connect() as sql:
        records = "FROM read_json(? || '/commits/*/*/*.json')"
        sql.execute(
            f"SET VARIABLE files = (SELECT list(? || '/' || files.samples.name) {records})", [cache.uri, cache.uri]
        )
        keys = sql.execute("SELECT key FROM read_parquet(getvariable('files'))").fetchall()
    assert sorted(key for (key,) in keys) == sorted(cache.keys())


def test_pandas_and_pyarrow_read_the_tables(cache: PrunedCache) -> None:
    files = committed(cache, "samples")
    frame = pd.concat([pd.read_parquet(file) for file in files])
    assert frame["key"].tolist() == cache.keys()
    assert [[list(point) for point in kept] for kept in frame["kept"]] == cache.table.column("kept").to_pylist()
    table = pyarrow.dataset.dataset(files, format="parquet").to_table(["key", "kv_checksum"])
    assert table.column("kv_checksum").to_pylist() == cache.table.column("kv_checksum").to_pylist()


def test_pyarrow_reads_the_tables_from_s3(s3_environment: S3Server) -> None:
    stored = write_cache(s3_environment.fresh_uri(), PARTS, s3_environment.config)
    plain = pyarrow.fs.S3FileSystem(
        endpoint_override=s3_environment.endpoint_url.removeprefix("http://"),
        scheme="http",
        region="us-east-1",
        access_key=s3_environment.access_key,
        secret_key=s3_environment.secret_key,
    )
    files = [file.removeprefix("s3://") for file in committed(stored, "samples")]
    table = pyarrow.dataset.dataset(files, format="parquet", filesystem=plain).to_table()
    assert table.column("key").to_pylist() == stored.keys()


def test_hugging_face_datasets_loads_the_tables(cache: PrunedCache, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=committed(cache, "samples"), split="train", cache_dir=str(tmp_path)
    )
    assert loaded["key"][:] == cache.keys()
    assert loaded[0]["kept"] == cache.table.column("kept")[0].as_py()


def test_webdataset_streams_the_same_bytes(cache: PrunedCache) -> None:
    """Its bytes have the table's checksums, and decode to the prefixes that were stored."""
    members = list(webdataset.WebDataset(committed(cache, "tar"), shardshuffle=False))
    rows = cache.table.to_pylist()
    assert [checksum(member["kv.safetensors"]) for member in members] == [row["kv_checksum"] for row in rows]
    for row, member in zip(rows, members, strict=True):
        assert_same(read_container(member["kv.safetensors"], codec_of(CODEC)), prefix_of(row["key"]))


def test_webdataset_streams_from_s3(s3_environment: S3Server) -> None:
    """Through presigned URLs, which need nothing but HTTP."""
    stored = write_cache(s3_environment.fresh_uri(), PARTS, s3_environment.config)
    urls = []
    for file in committed(stored, "tar"):
        bucket, _, key = file.removeprefix("s3://").partition("/")
        urls.append(s3_environment.client().generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}))
    members = webdataset.WebDataset([f"pipe:curl -sf '{url}'" for url in urls], shardshuffle=False)
    found = [checksum(member["kv.safetensors"]) for member in members]
    assert found == stored.table.column("kv_checksum").to_pylist()
