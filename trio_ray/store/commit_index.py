"""A copy of all commit records in one object, so that to open a cache of many parts takes one read, not one a part.

It is never the truth. A record is taken from it only while the listing shows the very object that was copied; what the
index lacks, or has of an object that is no more, is read from where it lies. So it may be of any age, missing or
damaged, and may be deleted at any time.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from trio_ray.errors import ObjectDamaged, ObjectMissing, StoreError
from trio_ray.store.layout import COMMIT_INDEX, COMMITS, parse_commit_name
from trio_ray.store.objects import ObjectInfo, ObjectStore
from trio_ray.store.record import load_record
from trio_ray.store.tables import COMMIT_COPIES

WORTH_IT = 1000
"""Of fewer records no index is made or read: one by one they are read in about a second."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CommitCopy:
    """The bytes of a commit record, and the change marker of the object that they were in."""

    etag: str
    record: bytes


def read_commit_bytes(store: ObjectStore, listed: Sequence[ObjectInfo], threads: int) -> list[bytes]:
    """The bytes of commit records as they were listed, in that order; from the index where it has them.

    Raises:
        StoreError: one that is not in the index cannot be read.
    """
    return _bytes_of(store, listed, _copies(store) if len(listed) >= WORTH_IT else {}, threads)


def _bytes_of(
    store: ObjectStore, listed: Sequence[ObjectInfo], copies: Mapping[str, CommitCopy], threads: int
) -> list[bytes]:
    copied = {info.name: copies[info.name].record for info in listed if is_copied(info, copies)}
    others = [info.name for info in listed if info.name not in copied]
    with ThreadPoolExecutor(threads) as pool:
        read = dict(zip(others, pool.map(store.read, others), strict=True))
    return [copied.get(info.name) or read[info.name] for info in listed]


def is_copied(info: ObjectInfo, copies: Mapping[str, CommitCopy]) -> bool:
    """Whether there is a copy of this very object."""
    return info.name in copies and copies[info.name].etag == info.etag


def update_index(store: ObjectStore, threads: int) -> int:
    """Make the index anew from the records that are committed now, if they are many and it does not have them all.

    Of several callers at once the last one's stays, which may lack what the others saw. Damaged records are left out.

    Returns:
        The number of records in the index written; 0 if none was.

    Raises:
        StoreError: a record cannot be read, or the index not written.
    """
    listed = [info for info in store.list(COMMITS) if parse_commit_name(info.name)]
    if len(listed) < WORTH_IT:
        return 0
    copies = _copies(store)
    if {info.name: info.etag for info in listed} == {name: copy.etag for name, copy in copies.items()}:
        return 0
    records = _bytes_of(store, listed, copies, threads)
    rows = [
        {"name": info.name, "etag": info.etag, "record": record.decode()}
        for info, record in zip(listed, records, strict=True)
        if _is_intact(record)
    ]
    data = io.BytesIO()
    table = pa.Table.from_pylist(rows, COMMIT_COPIES)
    pq.write_table(table, data, compression="zstd", write_page_checksum=True)
    store.put(COMMIT_INDEX, data.getvalue())
    return len(rows)


def read_index(store: ObjectStore) -> dict[str, CommitCopy]:
    """The copies by the name of their object.

    Raises:
        ObjectMissing: there is no index.
        ObjectDamaged: it is not as it was written.
        StoreError: it cannot be read.
    """
    data = store.read(COMMIT_INDEX)
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        if not table.schema.equals(COMMIT_COPIES):
            raise ValueError("other columns")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ObjectDamaged(
            store.uri_of(COMMIT_INDEX),
            f"is no index of commit records ({error}); delete it, the next run makes it anew",
        ) from None
    names, etags, records = (column.to_pylist() for column in table.columns)
    return {name: CommitCopy(etag, record.encode()) for name, etag, record in zip(names, etags, records, strict=True)}


def _is_intact(record: bytes) -> bool:
    try:
        load_record(record, "")
    except ObjectDamaged:
        return False
    return True


def _copies(store: ObjectStore) -> dict[str, CommitCopy]:
    """What the index has, nothing if it is of no use."""
    try:
        return read_index(store)
    except ObjectMissing:
        return {}
    except StoreError as error:
        log.warning("%s; the commit records are read one by one", error)
        return {}
