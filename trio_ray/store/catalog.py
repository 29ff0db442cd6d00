"""The catalog: copies of the commit records as columns, and indexes of the keys, which grow by appending.

A version is its root: it names the segments and indexes that count. It is created once and never changed, and the
highest one is the catalog. What a version names is written before it: a writer that is killed leaves the version
before, whole.

The commit records are the truth, and the catalog is never more than a copy; it may be deleted at any time.

- A version with a seal says that the segments held every commit record when the run that made it ended. A reader
  takes its word: it needs no listing, and no segment until it asks for a part. Whoever is about to add or remove commit
  records creates a version without a seal first (`unseal`).
- Without a seal the records are listed. One is taken from a segment only while the listing shows the very object that
  was copied; what the segments lack, or have of an object that is no more, is read from where it lies.

A record that was changed by hand stays unseen by readers of a sealed catalog until something lists the records:
the next run and `gc` put the catalog right, and `verify` names the difference.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from trio_ray.errors import ObjectDamaged, StoreError
from trio_ray.store.key_index import IndexRef
from trio_ray.store.layout import CATALOG_VERSIONS, catalog_version_name, parse_catalog_version, segment_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.record import dump_record, load_record
from trio_ray.store.tables import COMMITS
from trio_ray.store.totals import Totals

TRIES = 5
"""Times that a version is tried to be created while other writers are faster."""

log = logging.getLogger(__name__)

_MADE_ANEW = "delete the folder catalog/, the next run makes it anew"


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment: `parts` commit records as the rows of a Parquet file, and the xxh3-128 (hex) of all its bytes."""

    name: str
    parts: int
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Seal:
    """What a version says of all commit records.

    Attributes:
        identity_hash: that all of them have.
        dropped: numbers of the parts in the segments that do not count: their record is gone, was replaced, or is a
            second time in the segments. Ascending.
        totals: sums over the parts that count.
    """

    identity_hash: str
    dropped: tuple[int, ...]
    totals: Totals


@dataclass(frozen=True, slots=True)
class Catalog:
    """A version of the catalog.

    The parts are numbered through all segments, in their order. Each index covers a range of these numbers, and
    together they cover all. `seal` is there if the segments have every commit record.
    """

    version: int
    segments: tuple[SegmentRef, ...]
    indexes: tuple[IndexRef, ...]
    seal: Seal | None = None

    @property
    def parts(self) -> int:
        """Parts in all segments."""
        return sum(segment.parts for segment in self.segments)


NO_CATALOG = Catalog(0, (), ())


def read_catalog(store: ObjectStore) -> Catalog:
    """The newest version; `NO_CATALOG` if there is none.

    Raises:
        ObjectDamaged: it is not as it was written.
        StoreError: it cannot be read.
    """
    newest = _newest(store)
    return read_version(store, newest) if newest else NO_CATALOG


def _newest(store: ObjectStore) -> int:
    versions = (parse_catalog_version(info.name) for info in store.list(CATALOG_VERSIONS))
    return max((version for version in versions if version is not None), default=0)


def read_version(store: ObjectStore, version: int) -> Catalog:
    """One version of the catalog. Raises as `read_catalog` does."""
    name = catalog_version_name(version)
    uri = store.uri_of(name)
    fields = load_record(store.read(name), uri)
    try:
        segments = tuple(SegmentRef(**segment) for segment in fields["segments"])
        indexes = tuple(IndexRef(**index) for index in fields["indexes"])
        catalog = Catalog(fields["version"], segments, indexes, _seal_of(fields["seal"]))
    except (KeyError, TypeError) as error:
        raise ObjectDamaged(uri, f"has not the fields of a catalog ({error}); {_MADE_ANEW}") from None
    edges = [0, *(index.beyond for index in indexes)]
    if catalog.version != version or [i.first for i in indexes] != edges[:-1] or edges[-1] != catalog.parts:
        raise ObjectDamaged(uri, f"its indexes do not cover its segments; {_MADE_ANEW}")
    return catalog


def _seal_of(fields: dict[str, Any] | None) -> Seal | None:
    if fields is None:
        return None
    totals = fields["totals"]
    reasons = dict(sorted(totals["reasons"].items(), key=lambda counted: -counted[1]))  # JSON has them by name
    read = Totals(**{**totals, "reasons": reasons, "replicas": tuple(totals["replicas"])})
    return Seal(fields["identity_hash"], tuple(fields["dropped"]), read)


def usable_catalog(store: ObjectStore) -> Catalog:
    """The newest version; one of its number that holds nothing where it cannot be used, with a warning in the log."""
    newest = 0
    try:
        newest = _newest(store)
        return read_version(store, newest) if newest else NO_CATALOG
    except StoreError as error:
        log.warning("%s; the commit records are read one by one", error)
        return Catalog(newest, (), ())


def create_version(store: ObjectStore, catalog: Catalog) -> bool:
    """Make this the newest version; False if there is one of its number already."""
    return store.create(catalog_version_name(catalog.version), dump_record(asdict(catalog)))


def unseal(store: ObjectStore) -> None:
    """Make readers list the commit records from now on. To be called before records are added or removed.

    Raises:
        StoreError: the catalog cannot be read or written.
    """
    for _ in range(TRIES):
        try:
            catalog = read_catalog(store)
        except ObjectDamaged:
            return  # nobody can take its word
        if catalog.seal is None or create_version(store, replace(catalog, version=catalog.version + 1, seal=None)):
            return
    raise StoreError(store.uri, "other writers were faster at every try to unseal its catalog")


def write_segment(store: ObjectStore, rows: pa.Table) -> SegmentRef:
    """Write a segment of these rows (columns as in `COMMITS`)."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    # By a name of its own, so that `gc` cannot take it for what a killed writer has left.
    name = segment_name(uuid.uuid4().hex)
    store.put(name, data)
    return SegmentRef(name, rows.num_rows, len(data), xxhash.xxh3_128_hexdigest(data))


def read_segment(store: ObjectStore, segment: SegmentRef) -> pa.Table:
    """The rows of a segment.

    Raises:
        ObjectDamaged: it is not as it was written.
        StoreError: it cannot be read.
    """
    data = store.read(segment.name)
    uri = store.uri_of(segment.name)
    if xxhash.xxh3_128_hexdigest(data) != segment.checksum:
        raise ObjectDamaged(uri, f"its bytes are not those that were written; {_MADE_ANEW}")
    table = pq.ParquetFile(pa.BufferReader(data)).read()
    if not table.schema.equals(COMMITS) or table.num_rows != segment.parts:
        raise ObjectDamaged(uri, f"is no segment of {segment.parts} commit records; {_MADE_ANEW}")
    return table


def read_segments(store: ObjectStore, segments: Sequence[SegmentRef], threads: int) -> list[pa.Table | None]:
    """The rows of segments, in their order; None for one that cannot be used, with a warning in the log."""

    def read(segment: SegmentRef) -> pa.Table | None:
        try:
            return read_segment(store, segment)
        except StoreError as error:
            log.warning("%s; its commit records are read one by one", error)
            return None

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read, segments))


def named_objects(catalog: Catalog) -> Iterable[str]:
    """Names of all objects that a version needs, its own included."""
    yield catalog_version_name(catalog.version)
    yield from (segment.name for segment in catalog.segments)
    yield from (index.name for index in catalog.indexes)
