"""Input files to units of work."""

from __future__ import annotations

import re
from typing import BinaryIO, Literal

import xxhash

from trio_ray.config import SourceConfig
from trio_ray.errors import ConfigError
from trio_ray.source.jsonl import lines
from trio_ray.source.parquet import count_rows
from trio_ray.source.rejection import ShardDamaged
from trio_ray.source.sample import Opener, Shard

Format = Literal["webdataset", "parquet", "jsonl"]

ENDINGS: dict[str, Format] = {
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


def split_file(
    uri: str, size: int, etag: str, config: SourceConfig, opener: Opener, images: bool = True
) -> list[Shard]:
    """The units of work of one input file: at least one, in order, covering all of it.

    A tar is one unit. Parquet and JSONL files are cut into runs of `config.rows_per_shard` rows, so that one
    big file still keeps many replicas busy. A Parquet file without a readable footer is one unit, whose
    reading then says why.

    Args:
        uri: a local path or `s3://` URI; names depend on it, so give it in one spelling always.
        size: bytes.
        etag: what the store calls this version of the file.
        config: format and rows per shard.
        opener: reads Parquet footers and counts the lines of a JSONL file.
        images: whether images are read as well, so that a Parquet file must have their column.

    Raises:
        ConfigError: an unknown ending, or a Parquet column that does not exist; names the setting.
        StoreError: the file could not be read.
    """
    kind = config.format if config.format != "auto" else _format_of(uri)
    if kind == "webdataset":
        return [Shard(shard_name(uri), uri, size, etag, kind)]
    with opener.open(uri, etag or None) as file:
        if kind == "jsonl":
            runs = _line_runs(file, config.rows_per_shard)
        else:
            try:
                rows = count_rows(uri, file, config, images)
                runs = [(first, stop, 0) for first, stop in _runs(rows, config.rows_per_shard)]
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
    raise ConfigError("source.format", f"{uri} ends in none of {', '.join(ENDINGS)}; say which format it has")


def shard_name(uri: str) -> str:
    """Readable, safe as a folder's name, and no other URI's: the hash is over all of it."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", uri.rpartition("/")[2].partition(".")[0])[:48]
    return f"{stem.strip('_-') or 'shard'}-{xxhash.xxh3_64_hexdigest(uri.encode('utf-8', 'surrogateescape'))}"


def _runs(rows: int, length: int) -> list[tuple[int, int]]:
    return [(first, min(first + length, rows)) for first in range(0, max(rows, 1), length)]


def _line_runs(file: BinaryIO, length: int) -> list[tuple[int, int, int]]:
    """(first row, row after the last, byte offset of the first) of each run of a JSONL file."""
    offsets: list[int] = [0]
    rows = 0
    for line in lines(file):
        if rows and rows % length == 0:
            offsets.append(line.offset)
        rows += 1
    return [(first, stop, offset) for (first, stop), offset in zip(_runs(rows, length), offsets, strict=True)]
