"""The catalog: copies of the commit records as columns, and indexes of the keys, which grow by appending.

It is never the truth. A record is taken from it only while the listing shows the very object that was copied; what the
catalog lacks, or has of an object that is no more, is read from where it lies. So it may be of any age, missing or
damaged, and may be deleted at any time.

A version names the segments and indexes that count; it is created once and never changed, and the highest one is the
catalog. What a version names is written before it: a writer that is killed leaves the version before, whole.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from trio_ray.errors import ObjectDamaged, StoreError
from trio_ray.store.key_index import IndexRef
from trio_ray.store.layout import CATALOG_VERSIONS, catalog_version_name, parse_catalog_version, segment_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.record import dump_record, load_record
from trio_ray.store.tables import COMMITS

WORTH_IT = 100
"""Of fewer parts no catalog is made or read: their records are read one by one in about a second."""

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
class Catalog:
    """A version of the catalog.

    The parts are numbered through all segments, in their order. Each index covers a range of these numbers, and
    together they cover all.
    """

    version: int
    segments: tuple[SegmentRef, ...]
    indexes: tuple[IndexRef, ...]

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
        catalog = Catalog(fields["version"], segments, indexes)
    except (KeyError, TypeError) as error:
        raise ObjectDamaged(uri, f"has not the fields of a catalog ({error}); {_MADE_ANEW}") from None
    edges = [0, *(index.beyond for index in indexes)]
    if catalog.version != version or [i.first for i in indexes] != edges[:-1] or edges[-1] != catalog.parts:
        raise ObjectDamaged(uri, f"its indexes do not cover its segments; {_MADE_ANEW}")
    return catalog


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
