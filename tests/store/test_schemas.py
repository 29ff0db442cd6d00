"""The code, its real output and the language-neutral description say the same."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator

from tests.store.caches import shard, write_part
from trio_ray.store import catalog_writer, commit_table
from trio_ray.store.catalog import Catalog, SegmentRef
from trio_ray.store.commits import (
    CommitRecord,
    FileRecord,
    FooterRecord,
    PartStatistics,
    RunRecord,
    ShardInput,
)
from trio_ray.store.dataset import SCHEMA_VERSION, Dataset, utc_now
from trio_ray.store.failures import FailureLog, FailureRecord, FailuresRecord
from trio_ray.store.key_index import IndexRef
from trio_ray.store.layout import CATALOG_VERSIONS, commit_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.tables import COMMITS, QUARANTINE, SAMPLES

SCHEMAS = Path(__file__).parents[2] / "schemas"


def described(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    return content


def columns(schema: pa.Schema) -> list[dict[str, object]]:
    """A table's schema in the words of `*.table.json`."""
    return [
        {
            "name": column.name,
            "type": str(column.type),
            "nullable": column.nullable,
            "description": column.metadata[b"description"].decode(),
        }
        for column in schema
    ]


@pytest.mark.parametrize(("name", "schema"), [("samples", SAMPLES), ("quarantine", QUARANTINE), ("commits", COMMITS)])
def test_tables_are_described_column_by_column(name: str, schema: pa.Schema) -> None:
    table = described(f"{name}.table.json")
    assert table["columns"] == columns(schema)
    assert table["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize("kind", ["samples", "quarantine"])
def test_written_tables_have_the_described_columns(store: ObjectStore, dataset: Dataset, kind: Any) -> None:
    record = write_part(store, dataset)
    assert record is not None
    written = pq.read_schema(io.BytesIO(store.read(record.files[kind].name)))
    assert columns(written) == described(f"{kind}.table.json")["columns"]


def test_a_written_catalog_is_as_described(store: ObjectStore, dataset: Dataset) -> None:
    write_part(store, dataset)
    assert catalog_writer.complete_catalog(store, commit_table.read_commits(store, 2), 2) == 1
    appended, version = (json.loads(store.read(info.name)) for info in store.list(CATALOG_VERSIONS))
    validator = Draft202012Validator(described("catalog.schema.json"))
    assert [error.message for one in (appended, version) for error in validator.iter_errors(one)] == []
    assert (appended["seal"], version["seal"]["totals"]["parts"]) == (None, 1)
    written = pq.read_schema(io.BytesIO(store.read(version["segments"][0]["name"])))
    assert columns(written) == described("commits.table.json")["columns"]
    assert store.stat(version["indexes"][0]["name"]).size > 0


def test_written_records_are_valid(store: ObjectStore, dataset: Dataset) -> None:
    for part, (keys, bad) in enumerate([(["a", "b"], 1), ([], 2), (["c"], 0), ([], 0)]):
        write_part(store, dataset, part, keys, last=part == 3, bad=bad)
    now = utc_now()
    run = RunRecord("run", "host", now, now, "0.1.0")
    lost = ShardInput("lost", "s3://corpus/lost", -1, "", (0, 4096))
    FailureLog(store, "run").add(FailureRecord(dataset.identity_hash, lost, 3, "it died", run))
    names = {"dataset": ["dataset.json"], "failure": ["failures/run.json"]}
    names["commit"] = [commit_name(shard().name, part) for part in range(4)]
    for schema, objects in names.items():
        validator = Draft202012Validator(described(f"{schema}.schema.json"))
        for name in objects:
            assert [error.message for error in validator.iter_errors(json.loads(store.read(name)))] == [], name


@pytest.mark.parametrize(
    ("schema", "path", "record"),
    [
        ("dataset", (), Dataset),
        ("commit", (), CommitRecord),
        ("commit", ("shard",), ShardInput),
        ("commit", ("run",), RunRecord),
        ("commit", ("statistics",), PartStatistics),
        ("commit", ("files", "samples"), FileRecord),
        ("commit", ("files", "tar"), FileRecord),
        ("commit", ("files", "quarantine"), FileRecord),
        ("commit", ("files", "locators"), FileRecord),
        ("commit", ("footer",), FooterRecord),
        ("catalog", (), Catalog),
        ("catalog", ("segments",), SegmentRef),
        ("catalog", ("indexes",), IndexRef),
        ("failure", (), FailuresRecord),
        ("failure", ("failures",), FailureRecord),
        ("failure", ("failures", "shard"), ShardInput),
        ("failure", ("failures", "run"), RunRecord),
    ],
)
def test_schemas_have_the_fields_of_the_code_and_no_others(schema: str, path: tuple[str, ...], record: type) -> None:
    node = described(f"{schema}.schema.json")
    for step in path:
        node = node["properties"][step]
        node = node.get("items", node)
    expected = {field.name for field in fields(record)} | ({"checksum"} if not path else set())
    assert set(node["properties"]) == expected
    assert set(node["required"]) == expected
    assert node["additionalProperties"] is False


@pytest.mark.parametrize("name", ["dataset", "commit", "failure", "catalog"])
def test_the_schemas_are_schemas_and_refuse_an_empty_record(name: str) -> None:
    schema = described(f"{name}.schema.json")
    Draft202012Validator.check_schema(schema)
    assert not Draft202012Validator(schema).is_valid({})
