"""Parquet tables of which a few rows can be read: their row groups are small, and each has its own checksum.

The footer holds the checksums of the row groups, and the commit record holds the footer's.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from trio_ray.errors import ObjectDamaged
from trio_ray.store.objects import ObjectStore

GROUP_ROWS = 128
"""Rows of a row group: some 200 KB of a cache's table."""

GROUPS_KEY = "trio_ray.row_groups"
"""File metadata: a JSON list of the row groups' xxh3-128 (hex). They lie one behind the other from byte 4 on."""

TOKEN_LISTS = frozenset({"prompt_ids", "kept", "answer_ids", "target_ids", "target_logprobs"})
"""Columns that take nearly all of a table's bytes, and are compressed by zstd. The others are many and small: snappy
starts at once, where zstd takes longer to start than to decompress them.
"""

_START = 4
_TRAILER = 8


@dataclass(frozen=True)
class Footer:
    """A table's footer, already compared with its checksum.

    Attributes:
        metadata: what Parquet has in it.
        first_row: (groups + 1,) int64, the first row of each row group, and the rows of all.
        first_byte: (groups + 1,) int64, the same for bytes.
        checksums: of the row groups.
        nbytes: that it takes in the file.
    """

    metadata: pq.FileMetaData
    first_row: np.ndarray
    first_byte: np.ndarray
    checksums: tuple[str, ...]
    nbytes: int

    def group_of(self, row: int) -> int:
        """The row group that holds a row."""
        return int(np.searchsorted(self.first_row, row, "right")) - 1


def write_row_groups(table: pa.Table) -> tuple[bytes, int]:
    """A table as a Parquet file: its bytes, and how many of these, at the end, are the footer."""
    sink = io.BytesIO()
    checksums = []
    with pq.ParquetWriter(
        sink, table.schema, compression=_compression(table.schema), write_statistics=["key", "index"]
    ) as writer:
        for first in range(0, table.num_rows, GROUP_ROWS):
            start = sink.tell()
            writer.write_table(table.slice(first, GROUP_ROWS), row_group_size=GROUP_ROWS)
            checksums.append(xxhash.xxh3_128_hexdigest(sink.getbuffer()[start:]))
        writer.add_key_value_metadata({GROUPS_KEY: json.dumps(checksums)})
        data_bytes = sink.tell()
    data = sink.getvalue()
    return data, len(data) - data_bytes


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Of each column in Parquet's sense, by its path."""
    paths = [path for field in schema for path in _paths(field.name, field.type)]
    return {path: "zstd" if path.partition(".")[0] in TOKEN_LISTS else "snappy" for path in paths}


def _paths(path: str, kind: pa.DataType) -> Iterator[str]:
    if pa.types.is_list(kind):
        yield from _paths(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _paths(f"{path}.{field.name}", field.type)
    else:
        yield path


def parse_footer(data: bytes, uri: str) -> Footer:
    """The footer in the last bytes of a table.

    Raises:
        ObjectDamaged: it is none, or lacks the row groups' checksums.
    """
    try:
        metadata = pq.read_metadata(pa.BufferReader(data))
        checksums = tuple(json.loads(metadata.metadata[GROUPS_KEY.encode()]))
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        if len(checksums) != len(groups):
            raise ValueError(f"{len(checksums)} checksums of {len(groups)} row groups")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ObjectDamaged(uri, f"its footer cannot be read ({error}); restore it from a copy") from None
    rows = np.cumsum([0, *(group.num_rows for group in groups)])
    sizes = [sum(group.column(at).total_compressed_size for at in range(group.num_columns)) for group in groups]
    return Footer(metadata, rows, np.cumsum([_START, *sizes]), checksums, len(data))


def read_groups(store: ObjectStore, name: str, footer: Footer, groups: range) -> list[pa.Table]:
    """Neighbouring row groups of a table, by one range read.

    Raises:
        ObjectDamaged: one is not as it was written.
        StoreError: they cannot be read.
    """
    start, end = int(footer.first_byte[groups.start]), int(footer.first_byte[groups.stop])
    data = memoryview(store.read_range(name, start, end - start))
    return parse_groups(data, start, footer, groups, store.uri_of(name))


def parse_groups(data: memoryview, start: int, footer: Footer, groups: range, uri: str) -> list[pa.Table]:
    """Row groups in the bytes of a table from byte `start` on. Raises `ObjectDamaged` where one is not as written."""
    for group in groups:
        own = data[footer.first_byte[group] - start : footer.first_byte[group + 1] - start]
        if xxhash.xxh3_128_hexdigest(own) != footer.checksums[group]:
            raise ObjectDamaged(uri, f"row group {group} is not as it was written")
    file = pq.ParquetFile(pa.PythonFile(_Window(data, start), mode="r"), metadata=footer.metadata)
    return [file.read_row_group(group, use_threads=False) for group in groups]


class _Window(io.RawIOBase):
    """A file of which only the bytes from `start` on are there."""

    def __init__(self, data: memoryview, start: int) -> None:
        self._data = data
        self._start = start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._start + len(self._data)
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence]
        return self._position

    def read(self, size: int = -1, /) -> Any:
        first = self._position - self._start
        taken = self._data[first : None if size < 0 else first + size]
        self._position += len(taken)
        return bytes(taken)
