"""All commit records of a cache, as columns: from the catalog where it has them, and read one by one where not."""

from __future__ import annotations

import json
import logging
import sys
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

from trio_ray.errors import ObjectDamaged, StoreError
from trio_ray.recent import Recent
from trio_ray.store.catalog import (
    NO_CATALOG,
    Catalog,
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
from trio_ray.store.layout import CATALOG, COMMITS_FOLDERS, FileKind, commit_prefix, parse_commit_name
from trio_ray.store.layout import COMMITS as COMMITS_FOLDER
from trio_ray.store.objects import ObjectInfo, ObjectStore
from trio_ray.store.record import canonical_json
from trio_ray.store.tables import COMMITS
from trio_ray.store.totals import Totals, add_up

_KINDS: tuple[FileKind, ...] = get_args(FileKind)
_ROWS_AT_ONCE = 1024

log = logging.getLogger(__name__)

READ_ALONE = 100
"""Records of some shards that are so few are read one by one, in about a second; the catalog of all is larger."""

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
    """The rows of all parts by shard and part, the number of each, and by number the place of each (-1: none)."""

    table: pa.Table
    numbers: np.ndarray
    places: np.ndarray


class CommitTable(Sequence[CommitRecord]):
    """The committed parts of a cache, by shard and part. For several threads.

    A part has a place among all parts, and a number: where its row is in the segments of the catalog, or behind them in
    the tail. What is asked of a part by its number reads its segment alone; what is asked of all parts, or by a place,
    reads all segments, once.

    Pickled, it takes along what the catalog lacks, and reads segments again when they are asked for: they are never
    changed. Where one cannot be read, the commit records are listed, as long as there are as many as before.

    Args:
        store: of the cache.
        catalog: whose segments hold records.
        dropped: numbers of catalogued parts that do not count: their record is gone, is another one, or is a second
            time in the catalog. Ascending.
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
        self._segments = _no_segments()
        self._rows: _Rows | None = None if tables is None else self._sorted(tables)

    def __getstate__(self) -> dict[str, Any]:
        tail = zlib.compress(json.dumps(self.tail.to_pydict()).encode())
        return {**self.__dict__, "_rows": None, "_lock": None, "_segments": None, "tail": tail}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tail = json.loads(zlib.decompress(state["tail"]))
        self.__dict__.update(state, tail=pa.Table.from_pydict(tail, COMMITS))
        self._lock = threading.Lock()
        self._segments = _no_segments()

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
    def dropped(self) -> tuple[int, ...]:
        """Numbers of catalogued parts that do not count, ascending."""
        return tuple(self._dropped.tolist())

    @property
    def sealed(self) -> bool:
        """Whether the catalog has a seal and says the same as this table."""
        seal = self.catalog.seal
        return seal is not None and not self.tail.num_rows and seal.dropped == self.dropped

    @cached_property
    def totals(self) -> Totals:
        """Sums over all parts. A sealed catalog has them; else all rows are read."""
        return self.catalog.seal.totals if self.sealed and self.catalog.seal else add_up(self.rows)

    @property
    def rows(self) -> pa.Table:
        """The records as rows (`COMMITS`), by shard and part."""
        return self._loaded.table

    @property
    def numbers(self) -> np.ndarray:
        """(parts,) int64: the number of each part, as locators name it. Those of the tail are behind the catalog's."""
        return self._loaded.numbers

    def column(self, name: str) -> np.ndarray:
        """(parts,) a column of numbers."""
        return self.rows.column(name).to_numpy()

    def first_of_another_cache(self, identity_hash: str) -> CommitRecord | None:
        """The first record that has another identity than this one, if there is any."""
        if self.sealed and self.catalog.seal and self.catalog.seal.identity_hash == identity_hash:
            return None
        found = pc.index(pc.not_equal(self.rows.column("identity_hash"), identity_hash), True).as_py()
        return None if found < 0 else self[found]

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

    def need(self, numbers: Iterable[int]) -> None:
        """Read the segments of parts of the catalog. Where one cannot be read, its parts get numbers in the tail.

        Raises:
            ObjectDamaged: a segment cannot be read, and the commit records have changed.
            StoreError: they cannot be read.
        """
        wanted = {self._segment_of(number) for number in numbers if self._rows is None and self.counts(number)}
        try:
            for segment in wanted:
                self._segment(segment)
        except StoreError as error:
            log.warning("%s; the commit records are listed instead", error)
            with self._lock:
                if self._rows is None:
                    self._rows = self._listed_anew()

    def counts(self, number: int) -> bool:
        """Whether there is a part of this number, and it counts."""
        rows = self._rows
        if rows is not None:
            return number < len(rows.places) and bool(rows.places[number] >= 0)
        at = int(np.searchsorted(self._dropped, number))
        is_dropped = at < len(self._dropped) and self._dropped[at] == number
        return number < self.catalog.parts + self.tail.num_rows and not is_dropped

    def value(self, number: int, column: str) -> Any:
        """What a column has of the part of a number."""
        rows = self._rows
        if rows is not None:
            return rows.table.column(column)[int(rows.places[number])].as_py()
        if number >= self.catalog.parts:
            return self.tail.column(column)[number - self.catalog.parts].as_py()
        segment = self._segment_of(number)
        return self._segment(segment).column(column)[number - int(self._edges[segment])].as_py()

    def shard_of(self, number: int) -> str:
        """The shard's name of the part of a number."""
        return str(self.value(number, "shard"))

    def file(self, number: int, kind: FileKind) -> FileRecord | None:
        """The file of this kind of the part of a number, if it has one."""
        name, size, checksum = (self.value(number, f"{kind}_{what}") for what in ("name", "size", "checksum"))
        return None if name is None else FileRecord(name, size, checksum)

    def footer(self, number: int) -> FooterRecord:
        """Of the samples table of the part of a number."""
        return FooterRecord(self.value(number, "footer_size"), self.value(number, "footer_checksum"))

    @property
    def dead_segments(self) -> list[bool]:
        """For each segment of the catalog, whether none of its parts counts."""
        dropped = np.zeros(self.catalog.parts, bool)
        dropped[self._dropped] = True
        return [bool(dropped[first:beyond].all()) for first, beyond in pairwise(self._edges)]

    @cached_property
    def _edges(self) -> np.ndarray:
        """(segments + 1,) the number of the first part of each segment, and of all parts."""
        return np.cumsum([0, *(segment.parts for segment in self.catalog.segments)])

    def _segment_of(self, number: int) -> int:
        return int(np.searchsorted(self._edges, number, "right")) - 1

    def _segment(self, segment: int) -> pa.Table:
        return self._segments.get(segment, lambda: read_segment(self._store, self.catalog.segments[segment]))

    @property
    def _loaded(self) -> _Rows:
        with self._lock:
            if self._rows is None:
                tables = self._read()
                self._rows = self._listed_anew() if tables is None else self._sorted(tables)
                self._segments = _no_segments()  # the rows have all that they held
            return self._rows

    def _read(self) -> list[pa.Table] | None:
        """The rows of all segments, those of a dead one empty; None where one cannot be read."""

        def read(numbered: tuple[int, bool]) -> pa.Table:
            segment, dead = numbered
            return blank_rows(self.catalog.segments[segment].parts) if dead else self._segment(segment)

        try:
            with ThreadPoolExecutor(self._threads) as pool:
                return list(pool.map(read, enumerate(self.dead_segments)))
        except StoreError as error:
            log.warning("%s; the commit records are listed instead", error)
            return None

    def _listed_anew(self) -> _Rows:
        """The rows of the parts that the listing shows. The numbers of parts whose segments can be read stay."""
        before = len(self)
        tables, self._dropped, self.tail = _against_listing(
            self._store, self.catalog, list_all_commits(self._store, self._threads), self._threads
        )
        if len(self) != before:
            message = f"can be read in part alone, and there are {len(self)} commit records now, not {before}"
            raise ObjectDamaged(self._store.uri_of(CATALOG), f"{message}; open the cache anew")
        return self._sorted(tables)

    def _sorted(self, tables: Sequence[pa.Table]) -> _Rows:
        kept = np.ones(self.catalog.parts + self.tail.num_rows, bool)
        kept[self._dropped] = False
        numbers = np.flatnonzero(kept)
        table = pa.concat_tables([*tables, self.tail])
        order = pc.sort_indices(
            table.select(["shard", "part"]).take(numbers), [("shard", "ascending"), ("part", "ascending")]
        ).to_numpy()
        places = np.full(len(kept), -1, np.int64)
        places[numbers[order]] = np.arange(len(order))
        return _Rows(table.take(numbers[order]).combine_chunks(), numbers[order], places)


def open_commits(store: ObjectStore, threads: int, shards: Iterable[str] | None = None) -> CommitTable:
    """The commit records as a reader sees them: by the seal of the catalog if it has one, else by a listing.

    Raises:
        ObjectDamaged: at the first record that is not as it was written.
        StoreError: one cannot be read.
    """
    if shards is None:
        catalog = usable_catalog(store)
        if catalog.seal is not None:
            return CommitTable(store, catalog, np.array(catalog.seal.dropped, np.int64), table_of([]), threads)
    return read_commits(store, threads, shards)


def read_commits(store: ObjectStore, threads: int, shards: Iterable[str] | None = None) -> CommitTable:
    """All commit records that are there, or those of some shards, by a listing: for whoever writes to the cache.

    Raises:
        ObjectDamaged: at the first record that is not as it was written.
        StoreError: one cannot be read.
    """
    if shards is None:
        # Before the listing: a version that is sealed on top of this one has seen all that was there.
        catalog = usable_catalog(store)
        waiting = list_all_commits(store, threads)
    else:
        waiting = _list_prefixes(store, [commit_prefix(shard) for shard in set(shards)], threads)
        catalog = usable_catalog(store) if len(waiting) > READ_ALONE else NO_CATALOG
    tables, dropped, tail = _against_listing(store, catalog, waiting, threads)
    return CommitTable(store, catalog, dropped, tail, threads, tables)


def _against_listing(
    store: ObjectStore, catalog: Catalog, waiting: dict[Part, ObjectInfo], threads: int
) -> tuple[list[pa.Table], np.ndarray, pa.Table]:
    """The rows of a catalog's segments, the numbers of those that do not count, and the rows that it lacks.

    Args:
        store: of the cache.
        catalog: as it was read.
        waiting: the commit records that were listed. Those that the catalog has are taken out.
        threads: that read.
    """
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
    return tables, np.array(dropped, np.int64), read_rows(store, waiting, threads)


def _no_segments() -> Recent[int, pa.Table]:
    """Memory for segments by their place; all stay that are read."""
    return Recent(sys.maxsize, lambda table: table.nbytes)


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
