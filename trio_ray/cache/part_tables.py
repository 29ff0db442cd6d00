"""The tables of committed parts, read when they are wanted and not before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from trio_ray.cache.key_index import KeyIndex
from trio_ray.store.commits import CommitRecord
from trio_ray.store.layout import FileKind
from trio_ray.store.objects import ObjectStore
from trio_ray.store.part_table import read_part_table
from trio_ray.store.tables import QUARANTINE, SAMPLES

RECENT_BYTES = 128 << 20
"""Most bytes of tables that are kept for the next rows."""

_SCHEMAS: dict[FileKind, pa.Schema] = {"samples": SAMPLES, "quarantine": QUARANTINE}


class PartTables:
    """The rows of committed parts. A sample's number is its place among all of them, by shard, part and position.

    The commit records say how many samples each part has, so a number leads to its part without reading anything else.
    For several threads.
    """

    def __init__(self, store: ObjectStore, commits: Sequence[CommitRecord], threads: int) -> None:
        self._store = store
        self._commits = commits
        self._threads = threads
        self.counts = np.array([commit.stored for commit in commits], np.int64)
        self._first = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])
        self._recent = _RecentTables()
        self._indexes: dict[str | None, KeyIndex] = {}
        self._indexing = threading.Lock()

    def read(self, kind: FileKind, columns: Iterable[str] | None = None, shard: str | None = None) -> pa.Table:
        """All rows of one kind of table, of one shard or all, with their `shard`.

        Args:
            kind: "samples" or "quarantine".
            columns: those wanted, all if not given.
            shard: the one wanted.

        Raises:
            ObjectDamaged: a table is not as it was committed.
            StoreError: it cannot be read.
        """
        schema = pa.schema([*_SCHEMAS[kind], pa.field("shard", pa.string())])
        wanted = schema.names if columns is None else list(columns)
        plain = pa.schema([schema.field(name) for name in wanted])
        parts = self._parts_of(shard, kind)
        tables = self._in_threads(lambda part: self._read(part, kind, wanted).cast(plain), parts)
        return pa.concat_tables(tables) if tables else plain.empty_table()

    def rows(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of samples, in the order of their numbers as given; their tables are read at once, each one once.

        Raises:
            IndexError: there is no such number.
            ObjectDamaged, StoreError: see `read`.
        """
        total = int(self._first[-1])
        if any(not 0 <= number < total for number in numbers):
            raise IndexError(f"the cache has samples 0 to {total - 1}")
        places = np.asarray(numbers, np.int64)
        parts = np.searchsorted(self._first, places, "right") - 1
        distinct = sorted(set(parts.tolist()))
        tables = dict(zip(distinct, self._in_threads(self._recent_table, distinct), strict=True))
        rows: list[dict[str, Any]] = []
        for part, offset in zip(parts.tolist(), (places - self._first[parts]).tolist(), strict=True):
            table = tables[part] if columns is None else tables[part].select(list(columns))
            rows += table.slice(offset, 1).to_pylist()
        return rows

    def find(self, key: str, shard: str | None) -> list[int]:
        """Numbers of the samples that may have a key, in a shard if it is given.

        The first search of a shard reads its tables, one without a shard all tables; the keys' hashes stay in memory.
        """
        with self._indexing:  # else every thread that asks meanwhile would read all tables, too
            scope = None if None in self._indexes else shard
            if scope not in self._indexes:
                self._indexes[scope] = self._index(scope)
            index = self._indexes[scope]
        return index.candidates(key)

    def _index(self, shard: str | None) -> KeyIndex:
        parts = self._parts_of(shard, "samples")
        columns = self._in_threads(lambda part: self._read(part, "samples", ["key"]).column("key"), parts)
        numbers = [np.arange(self._first[part], self._first[part + 1]) for part in parts]
        keys = (key for column in columns for key in column.to_pylist())
        return KeyIndex(keys, np.concatenate([np.zeros(0, np.int64), *numbers]))

    def _parts_of(self, shard: str | None, kind: FileKind) -> list[int]:
        return [
            part
            for part, commit in enumerate(self._commits)
            if kind in commit.files and shard in (None, commit.shard.name)
        ]

    def _recent_table(self, part: int) -> pa.Table:
        table = self._recent.get(part)
        if table is None:
            table = self._read(part, "samples", [*SAMPLES.names, "shard"])
            self._recent.put(part, table)
        return table

    def _read(self, part: int, kind: FileKind, columns: Sequence[str]) -> pa.Table:
        return read_part_table(self._store, self._commits[part], kind, columns)

    def _in_threads(self, function: Callable[[int], Any], parts: Sequence[int]) -> list[Any]:
        if len(parts) < 2:
            return [function(part) for part in parts]
        with ThreadPoolExecutor(min(self._threads, len(parts))) as pool:
            return list(pool.map(function, parts))


class _RecentTables:
    """The tables that were used last, up to `RECENT_BYTES`, and always the last one."""

    def __init__(self) -> None:
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, part: int) -> pa.Table | None:
        with self._lock:
            if part in self._tables:
                self._tables.move_to_end(part)
            return self._tables.get(part)

    def put(self, part: int, table: pa.Table) -> None:
        with self._lock:
            if part in self._tables:  # another thread has read it too
                return
            self._tables[part] = table
            self._bytes += table.nbytes
            while self._bytes > RECENT_BYTES and len(self._tables) > 1:
                self._bytes -= self._tables.popitem(last=False)[1].nbytes
