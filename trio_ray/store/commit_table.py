"""All commit records of a cache, as columns: from the catalog where it has them, and read one by one where not."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from trio_ray.store.catalog import (
    NO_CATALOG,
    WORTH_IT,
    Catalog,
    SegmentRef,
    read_segment,
    read_segments,
    usable_catalog,
)
from trio_ray.store.commits import (
    CommitRecord,
    FileRecord,
    FooterRecord,
    PartStatistics,
    RunRecord,
    ShardInput,
    parse_commit,
)
from trio_ray.store.layout import COMMITS as COMMITS_FOLDER
from trio_ray.store.layout import COMMITS_FOLDERS, FileKind, commit_prefix, parse_commit_name
from trio_ray.store.objects import ObjectInfo, ObjectStore
from trio_ray.store.record import canonical_json
from trio_ray.store.tables import COMMITS

_KINDS: tuple[FileKind, ...] = get_args(FileKind)
_ROWS_AT_ONCE = 1024

LISTED_ALONE = 1000
"""So many names S3 lists with one request."""

Part = tuple[str, int]
"""A part by its shard's name and its number."""


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """What is committed of a shard, of which version of its input, and how that was damaged, if it was."""

    parts: frozenset[int]
    complete: bool
    source: ShardInput
    damage: str | None


@dataclass(frozen=True)
class _Rows:
    """The rows of all parts by shard and part, and the number of each in the catalog; those of the tail come behind."""

    table: pa.Table
    numbers: np.ndarray


class CommitTable(Sequence[CommitRecord]):
    """The committed parts of a cache, by shard and part. For several threads.

    Pickled, it takes along what the catalog lacks, and reads the rest again when it is first used: the segments that
    the catalog had are never changed.

    Args:
        store: of the cache.
        catalog: whose segments hold records.
        dropped: numbers of catalogued parts that do not count: their record is gone, is another one, or is a second
            time in the catalog.
        tail: rows (`COMMITS`) that the catalog does not have.
        threads: that read.
        tables: the segments' rows, if they are read already.
    """

    def __init__(
        self,
        store: ObjectStore,
        catalog: Catalog,
        dropped: np.ndarray,
        tail: pa.Table,
        threads: int,
        tables: Sequence[pa.Table] | None = None,
    ) -> None:
        self.catalog = catalog
        self.tail = tail
        self._store = store
        self._dropped = dropped
        self._threads = threads
        self._lock = threading.Lock()
        self._rows: _Rows | None = None if tables is None else self._sorted(tables)

    def __getstate__(self) -> dict[str, Any]:
        tail = zlib.compress(json.dumps(self.tail.to_pydict()).encode())
        return {**self.__dict__, "_rows": None, "_lock": None, "tail": tail}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tail = json.loads(zlib.decompress(state["tail"]))
        self.__dict__.update(state, tail=pa.Table.from_pydict(tail, COMMITS))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.catalog.parts - len(self._dropped) + self.tail.num_rows

    @overload
    def __getitem__(self, place: int) -> CommitRecord: ...

    @overload
    def __getitem__(self, place: slice) -> list[CommitRecord]: ...

    def __getitem__(self, place: int | slice) -> CommitRecord | list[CommitRecord]:
        if isinstance(place, slice):
            return [record_of(row) for row in self.rows.take(np.arange(len(self))[place]).to_pylist()]
        if not -len(self) <= place < len(self):
            raise IndexError(f"the cache has {len(self)} parts")
        return record_of(self.rows.slice(place % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[CommitRecord]:
        for batch in self.rows.to_batches(_ROWS_AT_ONCE):
            yield from map(record_of, batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def rows(self) -> pa.Table:
        """The records as rows (`COMMITS`), by shard and part."""
        return self._loaded.table

    @property
    def numbers(self) -> np.ndarray:
        """(parts,) int64: the number of each part in the catalog, as locators name it.

        Parts of the tail have numbers behind the catalog's.
        """
        return self._loaded.numbers

    def column(self, name: str) -> np.ndarray:
        """(parts,) a column of numbers."""
        return self.rows.column(name).to_numpy()

    def first_other(self, name: str, value: object) -> int | None:
        """The place of the first part that has another value in a column; None if there is none."""
        found = pc.index(pc.not_equal(self.rows.column(name), value), True).as_py()
        return None if found < 0 else found

    def total(self, name: str) -> Any:
        """The sum of a column of numbers; 0 if there are no parts."""
        return pc.sum(self.rows.column(name)).as_py() or 0

    @cached_property
    def digest(self) -> str:
        """What tells these parts from others: names, numbers and samples of all, hashed (xxh3-128)."""
        columns = [self.rows.column(name).to_pylist() for name in ("shard", "part", "stored")]
        return xxhash.xxh3_128_hexdigest(canonical_json(columns))

    @property
    def shards(self) -> list[str]:
        """Names of all shards, sorted."""
        return pc.unique(self.rows.column("shard")).to_pylist()

    def places_of(self, shard: str) -> range:
        """The places of a shard's parts, which are neighbours."""
        found = np.flatnonzero(pc.equal(self.rows.column("shard"), shard).to_numpy())
        return range(found[0], found[-1] + 1) if len(found) else range(0)

    def shard_of(self, place: int) -> str:
        """The shard's name of a part."""
        return self.rows.column("shard")[place].as_py()

    def file(self, place: int, kind: FileKind) -> FileRecord | None:
        """A part's file of this kind, if it has one."""
        row = self.rows
        name, size, checksum = (row.column(f"{kind}_{what}")[place].as_py() for what in ("name", "size", "checksum"))
        return None if name is None else FileRecord(name, size, checksum)

    def footer(self, place: int) -> FooterRecord:
        """Of a part's samples table."""
        size, checksum = (self.rows.column(f"footer_{what}")[place].as_py() for what in ("size", "checksum"))
        return FooterRecord(size, checksum)

    def progress(self) -> dict[str, ShardProgress]:
        """What every begun shard has committed, by shard name."""
        shards = self.rows.column("shard").to_pylist()
        parts = self.rows.column("part").to_pylist()
        begun: dict[str, list[int]] = {}
        for shard, part in zip(shards, parts, strict=True):
            begun.setdefault(shard, []).append(part)
        lasts = np.cumsum([len(parts) for parts in begun.values()]) - 1
        names = [*_SHARD_COLUMNS.values(), "beyond_row", "last", "damage"]
        highest = self.rows.select(names).take(pa.array(lasts, pa.int64()))
        found = {}
        for (shard, of_shard), row in zip(begun.items(), _row_by_row(highest), strict=True):
            found[shard] = ShardProgress(frozenset(of_shard), row["last"], _shard_of(row), row["damage"])
        return found

    @property
    def dead_segments(self) -> list[bool]:
        """For each segment of the catalog, whether none of its parts counts."""
        dropped = np.zeros(self.catalog.parts, bool)
        dropped[self._dropped] = True
        edges = np.cumsum([0, *(segment.parts for segment in self.catalog.segments)])
        return [bool(dropped[first:beyond].all()) for first, beyond in pairwise(edges)]

    @property
    def _loaded(self) -> _Rows:
        with self._lock:
            if self._rows is None:
                self._rows = self._sorted(self._read())
            return self._rows

    def _read(self) -> list[pa.Table]:
        def read(segment: SegmentRef, dead: bool) -> pa.Table:
            return blank_rows(segment.parts) if dead else read_segment(self._store, segment)

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(read, self.catalog.segments, self.dead_segments))

    def _sorted(self, tables: Sequence[pa.Table]) -> _Rows:
        kept = np.ones(self.catalog.parts + self.tail.num_rows, bool)
        kept[self._dropped] = False
        numbers = np.flatnonzero(kept)
        table = pa.concat_tables([*tables, self.tail])
        order = pc.sort_indices(
            table.select(["shard", "part"]).take(numbers), [("shard", "ascending"), ("part", "ascending")]
        ).to_numpy()
        return _Rows(table.take(numbers[order]).combine_chunks(), numbers[order])


def read_commits(store: ObjectStore, threads: int, shards: Iterable[str] | None = None) -> CommitTable:
    """All commit records, or those of some shards.

    Raises:
        ObjectDamaged: at the first record that is not as it was written.
        StoreError: one cannot be read.
    """
    waiting = (
        list_all_commits(store, threads)
        if shards is None
        else _list_prefixes(store, [commit_prefix(shard) for shard in set(shards)], threads)
    )
    catalog = usable_catalog(store) if len(waiting) >= WORTH_IT else NO_CATALOG
    tables: list[pa.Table] = []
    dropped: list[int] = []
    number = 0
    for segment, table in zip(catalog.segments, read_segments(store, catalog.segments, threads), strict=True):
        if table is None:
            tables.append(blank_rows(segment.parts))
            dropped += range(number, number + segment.parts)
        else:
            tables.append(table)
            columns = (table.column(name).to_pylist() for name in ("shard", "part", "record_etag"))
            for at, (shard, part, etag) in enumerate(zip(*columns, strict=True), number):
                info = waiting.get((shard, part))
                if info is not None and info.etag == etag:
                    del waiting[shard, part]
                else:
                    dropped.append(at)
        number += segment.parts
    tail = read_rows(store, waiting, threads)
    return CommitTable(store, catalog, np.array(dropped, np.int64), tail, threads, tables)


def list_all_commits(store: ObjectStore, threads: int) -> dict[Part, ObjectInfo]:
    """The objects of all commit records, by shard and part.

    Of few records one listing tells all; where there are more, those of `COMMITS_FOLDERS` are read side by side.
    Raises `StoreError` where they cannot be listed.
    """
    first = list(islice(store.list(COMMITS_FOLDER), LISTED_ALONE))
    if len(first) < LISTED_ALONE:
        return dict(_records(first))
    return _list_prefixes(store, COMMITS_FOLDERS, threads)


def list_commits(store: ObjectStore, shard: str) -> dict[Part, ObjectInfo]:
    """The objects of a shard's commit records, by shard and part. Raises as `list_all_commits` does."""
    return dict(_records(store.list(commit_prefix(shard))))


def _list_prefixes(store: ObjectStore, prefixes: Sequence[str], threads: int) -> dict[Part, ObjectInfo]:
    with ThreadPoolExecutor(threads) as pool:
        listed = pool.map(lambda prefix: list(_records(store.list(prefix))), prefixes)
        return {part: info for below in listed for part, info in below}


def _records(listed: Iterable[ObjectInfo]) -> Iterator[tuple[Part, ObjectInfo]]:
    for info in listed:
        part = parse_commit_name(info.name)
        if part is not None:
            yield part, info


def read_rows(store: ObjectStore, listed: Mapping[Part, ObjectInfo], threads: int) -> pa.Table:
    """The records of listed parts as rows (`COMMITS`), by shard and part: a segment that is made of them holds a range
    of shards. Raises as `read_commits` does.
    """

    def read(entry: tuple[Part, ObjectInfo]) -> dict[str, Any]:
        (shard, part), info = entry
        return row_of(parse_commit(store.read(info.name), shard, part, store.uri_of(info.name)), info.etag)

    with ThreadPoolExecutor(threads) as pool:
        return table_of(list(pool.map(read, sorted(listed.items(), key=lambda entry: entry[0]))))


def blank_rows(parts: int) -> pa.Table:
    """Rows that hold nothing, in the place of a segment of which no part counts."""
    return pa.table([pa.nulls(parts, column.type) for column in COMMITS], schema=COMMITS)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table of the catalog's columns."""
    return pa.Table.from_pylist(rows, COMMITS)


_SHARD_COLUMNS = {
    "name": "shard",
    "uri": "uri",
    "size": "size",
    "etag": "etag",
    "rows": "first_row",
    "checksum": "checksum",
}
"""Field of a `ShardInput` -> column; `rows` takes `beyond_row`, too."""

_STATISTICS = ("image_tokens", "held_tokens", "member_bytes", "device_s")
_RUN = ("run_id", "host", "started", "finished", "package_version")
_SAME = (
    "schema_version", "identity_hash", "part", "attempt", "last", "stored", "quarantined", "damage", "replica",
)  # fmt: skip


def row_of(record: CommitRecord, etag: str) -> dict[str, Any]:
    """A record as a row of the catalog's columns, and the change marker of its object."""
    row: dict[str, Any] = {name: getattr(record, name) for name in _SAME}
    row |= {column: getattr(record.shard, name) for name, column in _SHARD_COLUMNS.items()}
    row["first_row"], row["beyond_row"] = record.shard.rows or (None, None)
    for kind in _KINDS:
        file = record.files.get(kind)
        row |= {f"{kind}_{what}": file and getattr(file, what) for what in ("name", "size", "checksum")}
    row |= {"footer_size": record.footer.size, "footer_checksum": record.footer.checksum}
    row |= {name: getattr(record.statistics, name) for name in _STATISTICS}
    row |= {name: getattr(record.run, name) for name in _RUN}
    reasons = [{"reason": reason, "count": count} for reason, count in record.statistics.reasons.items()]
    return {**row, "reasons": reasons, "record_etag": etag}


def record_of(row: Mapping[str, Any]) -> CommitRecord:
    """The record that a row was made of."""
    files = {
        kind: FileRecord(row[f"{kind}_name"], row[f"{kind}_size"], row[f"{kind}_checksum"])
        for kind in _KINDS
        if row[f"{kind}_name"] is not None
    }
    reasons = {counted["reason"]: counted["count"] for counted in row["reasons"]}
    return CommitRecord(
        **{name: row[name] for name in _SAME},
        shard=_shard_of(row),
        files=files,
        footer=FooterRecord(row["footer_size"], row["footer_checksum"]),
        statistics=PartStatistics(**{name: row[name] for name in _STATISTICS}, reasons=reasons),
        run=RunRecord(**{name: row[name] for name in _RUN}),
    )


def _shard_of(row: Mapping[str, Any]) -> ShardInput:
    fields = {name: row[column] for name, column in _SHARD_COLUMNS.items()}
    return ShardInput(**{**fields, "rows": None if row["first_row"] is None else (row["first_row"], row["beyond_row"])})


def _row_by_row(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(_ROWS_AT_ONCE):
        yield from batch.to_pylist()
