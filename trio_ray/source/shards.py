"""Input files to units of work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import BinaryIO, Literal, TypeVar

import xxhash

from trio_ray.config import SourceConfig
from trio_ray.errors import ConfigError
from trio_ray.source.conversation import CONVERSATION_FIELDS
from trio_ray.source.json_array import top_level_fields
from trio_ray.source.json_records import text_records
from trio_ray.source.parquet import runs_of_rows
from trio_ray.source.record import parse_record
from trio_ray.source.rejection import Rejected, ShardDamaged, listed
from trio_ray.source.sample import Opener, Shard
from trio_ray.source.text_lines import MAX_RECORD_BYTES, lines

T = TypeVar("T")

Format = Literal["webdataset", "parquet", "jsonl", "json"]

ENDINGS: dict[str, Format] = {
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
}

_UNPACK = "unpack it first, as runs of its rows are read from the middle of the file"
_CONVERT = "convert it to Parquet, for example with pandas: read_csv({}).to_parquet(...)"
_CURES = {
    **dict.fromkeys((".gz", ".zst", ".xz", ".bz2"), _UNPACK),
    ".zip": "unpack it first",
    ".tsv": _CONVERT.format("..., sep='\\t'"),
    ".csv": _CONVERT.format("..."),
    ".arrow": "convert it to Parquet, for example with datasets: load_from_disk(...).to_parquet(...)",
}
"""Endings of files that corpora come in and that are not read, and what to do with them."""

_GZIP = b"\x1f\x8b"


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` of the items, at equal distances."""
    return list(items) if len(items) <= count else [items[number * len(items) // count] for number in range(count)]


def split_file(
    uri: str, size: int, etag: str, config: SourceConfig, opener: Opener, images: bool = True
) -> list[Shard]:
    """The units of work of one input file: at least one, in order, covering all of it.

    A tar is one unit. Parquet, JSONL and JSON files are cut into runs of `config.rows_per_shard` rows, so that one
    big file still keeps many replicas busy; runs of Parquet are whole row groups, unless those are small
    (`parquet.runs_of_rows`). A Parquet file without a readable footer is one unit, whose reading then says why. A
    `.json` file that holds one object a line is read as JSONL.

    Args:
        uri: a local path or `s3://` URI; names depend on it, so give it in one spelling always.
        size: bytes.
        etag: what the store calls this version of the file.
        config: format and rows per shard.
        opener: reads Parquet footers and counts the records of JSON files.
        images: whether images are read as well, so that a Parquet file must have their column.

    Raises:
        ConfigError: an unknown ending, a Parquet column that does not exist, or a `.json` file whose top level is an
            object where nothing says which field holds the records; names the setting.
        StoreError: the file could not be read.
    """
    kind = config.format if config.format != "auto" else _format_of(uri)
    if kind == "webdataset":
        return [Shard(shard_name(uri), uri, size, etag, kind)]
    with opener.open(uri, etag or None) as file:
        if kind != "parquet":
            _refuse_compressed(uri, file)
        if kind == "json":
            kind = _json_layout(uri, file, config)
        if kind != "parquet":
            runs = _record_runs(file, kind, config)
        else:
            try:
                runs = [(first, stop, 0) for first, stop in runs_of_rows(uri, file, config, images)]
            except ShardDamaged:
                return [Shard(shard_name(uri), uri, size, etag, kind)]
    return [
        Shard(f"{shard_name(uri)}-{first:09d}-{stop:09d}", uri, size, etag, kind, (first, stop), offset)
        for first, stop, offset in runs
    ]


def _format_of(uri: str) -> Format:
    for ending, kind in ENDINGS.items():
        if uri.lower().endswith(ending):
            return kind
    endings = ", ".join(ENDINGS)
    for ending, cure in _CURES.items():
        if uri.lower().endswith(ending):
            raise ConfigError("source.format", f"{uri} is not read as it is ({endings} are); {cure}")
    raise ConfigError("source.format", f"{uri} ends in none of {endings}; say which format it has")


def _refuse_compressed(uri: str, file: BinaryIO) -> None:
    """Raise `ConfigError` for text that gzip has packed, whatever its name says: each line of it would be bad."""
    packed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    if packed:
        raise ConfigError("input", f"{uri} is packed by gzip; {_UNPACK}")


def shard_name(uri: str) -> str:
    """Readable, safe as a folder's name, and no other URI's: the hash is over all of it."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", uri.rpartition("/")[2].partition(".")[0])[:48]
    return f"{stem.strip('_-') or 'shard'}-{xxhash.xxh3_64_hexdigest(uri.encode('utf-8', 'surrogateescape'))}"


def _runs(rows: int, length: int) -> list[tuple[int, int]]:
    return [(first, min(first + length, rows)) for first in range(0, max(rows, 1), length)]


def _record_runs(file: BinaryIO, kind: str, config: SourceConfig) -> list[tuple[int, int, int]]:
    """(first row, row after the last, byte offset of the first) of each run of a JSONL or JSON file."""
    length = config.rows_per_shard
    offsets: list[int] = [0]
    rows, damaged = 0, False
    try:
        for record in text_records(file, kind, config):
            if rows and rows % length == 0:
                offsets.append(record.offset)
            rows += 1
    except ShardDamaged:
        damaged = True
    runs = [(first, stop, offset) for (first, stop), offset in zip(_runs(rows, length), offsets, strict=True)]
    if damaged:  # the last run must come to the damage, and say so
        first, stop, offset = runs[-1]
        runs[-1] = (first, stop + 1, offset)
    return runs


def _json_layout(uri: str, file: BinaryIO, config: SourceConfig) -> Format:
    """Whether a `.json` file is one array, an object with the records in it, or one object a line.

    Raises:
        ConfigError: an object, and the settings do not say which field holds the records.
    """
    if config.records is not None:
        return "json"
    start = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"{"):
        return "json"
    file.seek(0)
    if _object_a_line(file):
        return "jsonl"
    file.seek(0)
    raise ConfigError(
        "source.records",
        f"{uri} holds one JSON object with the fields {listed(top_level_fields(file))}; name the field that holds the "
        "array of records, or '*' if each field is a record",
    )


def _object_a_line(file: BinaryIO) -> bool:
    """Whether the first line that is not blank is a whole JSON object, and no field of it holds records itself."""
    first = next(lines(file), None)
    if first is None or len(first.data) > MAX_RECORD_BYTES:
        return False
    try:
        record = parse_record(first.data)
    except Rejected:
        return False
    return next(lines(file, first.offset + len(first.data)), None) is not None or not any(
        isinstance(value, dict) or (isinstance(value, list) and len(value) > 1 and isinstance(value[0], dict))
        for name, value in record.items()
        if name not in CONVERSATION_FIELDS
    )
