"""The tables of committed parts: some rows by a small read each, or all of them one part after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from trio_ray.errors import ObjectDamaged
from trio_ray.kv.container import checksum
from trio_ray.ordered import ordered_map
from trio_ray.recent import Recent
from trio_ray.store.commit_table import CommitTable
from trio_ray.store.layout import FileKind
from trio_ray.store.objects import ObjectStore
from trio_ray.store.part_table import SHARD, read_part_table
from trio_ray.store.row_groups import Footer, parse_footer, parse_groups, read_groups
from trio_ray.store.tables import QUARANTINE, SAMPLES

RECENT_BYTES = 128 << 20
"""Upper bound on the memory of row groups that are kept for the next rows."""

FOOTER_BYTES = 16 << 20
"""The same for footers, by the bytes that they take in their files."""

WHOLE_BYTES = 512 << 10
"""Upper bound on the bytes of a table that is read whole for one row: a second request would take longer."""

SCAN_AHEAD = 4
"""Tables that a scan reads ahead: with those in work it bounds the memory that the scan takes."""

_SCHEMAS: dict[FileKind, pa.Schema] = {"samples": SAMPLES, "quarantine": QUARANTINE}


class PartTables:
    """The rows of committed parts. A sample's number is its place among all of them, by shard, part and position.

    The commit records say how many samples each part has, so a number leads to its part without reading anything else.
    A part is known by its number in the commit table, so that finding one row by its key needs no other part's record.
    For several threads.
    """

    def __init__(self, store: ObjectStore, commits: CommitTable, threads: int) -> None:
        self._store = store
        self._commits = commits
        self._threads = threads
        self._groups: Recent[tuple[int, int], pa.Table] = Recent(RECENT_BYTES, lambda table: table.nbytes)
        self._footers: Recent[int, Footer] = Recent(FOOTER_BYTES, lambda footer: footer.nbytes)

    @cached_property
    def counts(self) -> np.ndarray:
        """(parts,) int64, samples of each part."""
        return self._commits.column("stored")

    @cached_property
    def first(self) -> np.ndarray:
        """(parts + 1,) int64, the number of each part's first sample, and of all samples."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])

    def read(self, kind: FileKind, columns: Iterable[str] | None = None, shard: str | None = None) -> pa.Table:
        """All rows of one kind of table, of one shard or all, with their `shard`: as much memory as they take.

        Args:
            kind: "samples" or "quarantine".
            columns: those wanted, all if not given.
            shard: the one wanted.

        Raises:
            ObjectDamaged: a table is not as it was committed.
            StoreError: it cannot be read.
        """
        schema = _schema(kind)
        plain = pa.schema([schema.field(name) for name in (schema.names if columns is None else columns)])
        with closing(self.scan(kind, columns, shard)) as tables:
            read = [table.cast(plain) for table in tables]
        return pa.concat_tables(read) if read else plain.empty_table()

    def scan(
        self, kind: FileKind, columns: Iterable[str] | None = None, shard: str | None = None
    ) -> Generator[pa.Table, None, None]:
        """The same table by table, in order; a few are read ahead. Raises as `read` does."""
        wanted = _schema(kind).names if columns is None else list(columns)
        places = self._places_of(shard, kind)
        if len(places) == 1:
            yield self._read(places[0], kind, wanted)
            return
        threads = min(self._threads, len(places)) or 1
        ahead = ordered_map(lambda at: self._read(at, kind, wanted), iter(places), threads, max(SCAN_AHEAD, threads))
        with closing(ahead) as tables:
            yield from tables

    def rows(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of samples, in the order of their numbers as given; their row groups are read, each one once.

        Raises:
            IndexError: there is no such number.
            ObjectDamaged, StoreError: see `read`.
        """
        total = int(self.first[-1])
        if any(not 0 <= number < total for number in numbers):
            raise IndexError(f"the cache has samples 0 to {total - 1}")
        samples = np.asarray(numbers, np.int64)
        places = np.searchsorted(self.first, samples, "right") - 1
        offsets = samples - self.first[places]
        return self.rows_of(self._commits.numbers[places].tolist(), offsets.tolist(), columns)

    def rows_of(
        self, parts: Sequence[int], offsets: Sequence[int], columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """The rows at these offsets in parts of these numbers. Raises as `read` does."""
        distinct = sorted(set(parts))
        footers = dict(zip(distinct, self._in_threads(self._footer, distinct), strict=True))
        wanted = [(part, footers[part].group_of(row)) for part, row in zip(parts, offsets, strict=True)]
        tables = self._groups_of(sorted(set(wanted)), footers)
        rows: list[dict[str, Any]] = []
        for place, row in zip(wanted, offsets, strict=True):
            table = tables[place] if columns is None else tables[place].select(list(columns))
            rows += table.slice(row - int(footers[place[0]].first_row[place[1]]), 1).to_pylist()
        return rows

    def _groups_of(
        self, wanted: Sequence[tuple[int, int]], footers: dict[int, Footer]
    ) -> dict[tuple[int, int], pa.Table]:
        """Row groups by part and number; neighbours that are not in memory are read together."""
        absent = [place for place in wanted if not self._groups.holds(place)]
        runs = [
            [place for _, place in run]
            for _, run in groupby(enumerate(absent), lambda pair: (pair[1][0], pair[1][1] - pair[0]))
        ]

        def read(run: list[tuple[int, int]]) -> dict[tuple[int, int], pa.Table]:
            part = run[0][0]
            if len(run) == 1:
                return {run[0]: self._group(run[0], footers[part])}
            tables = dict(zip(run, self._read_groups(footers[part], run), strict=True))
            for place, table in tables.items():
                self._groups.put(place, table)
            return tables

        found = {place: table for tables in self._in_threads(read, runs) for place, table in tables.items()}
        return found | {place: self._group(place, footers[place[0]]) for place in wanted if place not in found}

    def _group(self, place: tuple[int, int], footer: Footer) -> pa.Table:
        """A row group, from memory if it is there."""
        return self._groups.get(place, lambda: self._read_groups(footer, [place])[0])

    def _read_groups(self, footer: Footer, run: Sequence[tuple[int, int]]) -> list[pa.Table]:
        """Neighbouring row groups of a part, with all columns and `shard`."""
        part = run[0][0]
        file = self._commits.file(part, "samples")
        assert file is not None
        groups = range(run[0][1], run[-1][1] + 1)
        return [self._with_shard(table, part) for table in read_groups(self._store, file.name, footer, groups)]

    def _with_shard(self, table: pa.Table, part: int) -> pa.Table:
        shard = pa.array([self._commits.shard_of(part)] * len(table), pa.string())
        return table.replace_schema_metadata(None).append_column(SHARD, shard)

    def _footer(self, part: int) -> Footer:
        return self._footers.get(part, lambda: self._read_footer(part))

    def _read_footer(self, part: int) -> Footer:
        """The footer of a part's table; of a small table the row groups, too, for those that ask for them next."""
        file, record = self._commits.file(part, "samples"), self._commits.footer(part)
        assert file is not None
        uri = self._store.uri_of(file.name)
        read = file.size if file.size <= WHOLE_BYTES else record.size
        data = self._store.read_range(file.name, file.size - read, read)
        if checksum(data[-record.size :]) != record.checksum:
            raise ObjectDamaged(uri, "its footer is not the one that was committed")
        footer = parse_footer(data[-record.size :], uri)
        if read == file.size:
            tables = parse_groups(memoryview(data), 0, footer, range(len(footer.checksums)), uri)
            for group, table in enumerate(tables):
                self._groups.put((part, group), self._with_shard(table, part))
        stored = self._commits.value(part, "stored")
        if footer.first_row[-1] != stored:
            raise ObjectDamaged(uri, f"has {footer.first_row[-1]} rows, its commit record says {stored}")
        return footer

    def _places_of(self, shard: str | None, kind: FileKind) -> list[int]:
        among = range(len(self._commits)) if shard is None else self._commits.places_of(shard)
        counts = self.counts if kind == "samples" else self._commits.column("quarantined")
        return [place for place in among if counts[place]]

    def _read(self, place: int, kind: FileKind, columns: Sequence[str]) -> pa.Table:
        return read_part_table(self._store, self._commits[place], kind, columns)

    def _in_threads(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        if len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(self._threads, len(items))) as pool:
            return list(pool.map(function, items))


def _schema(kind: FileKind) -> pa.Schema:
    return pa.schema([*_SCHEMAS[kind], pa.field("shard", pa.string())])


def row_by_row(tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    """The rows of tables, one after the other; few are there at one time."""
    for table in tables:
        for batch in table.to_batches(256):
            yield from batch.to_pylist()
