"""Holds every object of a cache against the language-neutral description in schemas/."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from jsonschema import Draft202012Validator

from trio_ray.store.commit_table import read_commits
from trio_ray.store.commits import CommitRecord
from trio_ray.store.dataset import load_dataset
from trio_ray.store.objects import ObjectStore

SCHEMAS = Path(__file__).parents[2] / "schemas"


def described(name: str) -> dict[str, Any]:
    """A file of schemas/."""
    return json.loads((SCHEMAS / name).read_text(encoding="utf-8"))


def assert_valid(record: object, schema: str) -> None:
    """A record against its JSON Schema."""
    faults = [error.message for error in Draft202012Validator(described(f"{schema}.schema.json")).iter_errors(record)]
    assert faults == [], record


def prefix_header(data: bytes) -> dict[str, Any]:
    """The header of a stored prefix, read as any safetensors reader would."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["trio_ray"])


def assert_follows_the_contract(store: ObjectStore) -> None:
    """Every record, every table and every prefix; fails too if the cache lacks one of the kinds that it is to show."""
    assert_valid(json.loads(store.read("dataset.json")), "dataset")
    failures = [info.name for info in store.list("failures/")]
    for name in failures:
        assert_valid(json.loads(store.read(name)), "failure")
    for info in store.list("commits/"):
        assert_valid(json.loads(store.read(info.name)), "commit")
    commits = read_commits(store, 4)
    assert any("quarantine" in commit.files for commit in commits)
    assert any(commit.stored for commit in commits)
    for commit in commits:
        _assert_tables(store, commit)
        _assert_prefixes(store, commit)


def _assert_tables(store: ObjectStore, commit: CommitRecord) -> None:
    for kind in ("samples", "quarantine"):
        if kind in commit.files:
            schema = pq.read_schema(io.BytesIO(store.read(commit.files[kind].name)))  # type: ignore[index]
            found = [(column.name, str(column.type), column.nullable) for column in schema]
            columns = described(f"{kind}.table.json")["columns"]
            assert found == [(column["name"], column["type"], column["nullable"]) for column in columns]


def _assert_prefixes(store: ObjectStore, commit: CommitRecord) -> None:
    encoder = load_dataset(store).identity["method"]["encoder"]
    for row in pq.read_table(io.BytesIO(store.read(commit.files["samples"].name))).to_pylist():
        if row["kv_object"] is None:
            _assert_embeds(store, row)
            continue
        header = prefix_header(store.read_range(row["kv_object"], row["kv_offset"], row["kv_length"]))
        assert_valid(header, "prefix")
        dropped_before = row["image_tokens"] - header["kept"][0] if encoder else 0
        assert (header["key"], header["length"]) == (row["key"], row["prompt_tokens"] - dropped_before)
        assert header["kept"] == [len(kept) for kept in row["kept"]]
        sizes = [{name: segment[name] for name in ("first_layer", "layers", "rows")} for segment in header["segments"]]
        assert sizes == row["segments"]


def _assert_embeds(store: ObjectStore, row: dict[str, Any]) -> None:
    if row["embeds_object"] is not None:
        header = prefix_header(store.read_range(row["embeds_object"], row["embeds_offset"], row["embeds_length"]))
        assert_valid(header, "embeds")
        assert (header["key"], header["length"]) == (row["key"], row["prompt_tokens"])
        assert header["rows"] == row["prompt_tokens"] - row["image_tokens"] + len(row["kept"][0])
