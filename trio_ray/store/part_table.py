"""Reading a table of one committed part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from trio_ray.errors import ObjectDamaged
from trio_ray.store.commit_table import CommitTable
from trio_ray.store.commits import CommitRecord
from trio_ray.store.layout import FileKind
from trio_ray.store.objects import ObjectStore

SHARD = "shard"
"""A column that tables have when they are read: the name of the part's shard."""


def read_part_table(store: ObjectStore, commit: CommitRecord, kind: FileKind, columns: Sequence[str]) -> pa.Table:
    """Columns of one part's table, `SHARD` among them if it is wanted. The part must have such a table.

    A path in Parquet's words, such as `images.list.element.hash`, gives its column with these fields alone. The
    table's checksum is that of the whole file, so the whole file is read.

    Raises:
        ObjectDamaged: the table is not as it was committed.
        StoreError: it cannot be read.
    """
    file = commit.files[kind]
    data = store.read(file.name)
    if xxhash.xxh3_128_hexdigest(data) != file.checksum:
        raise ObjectDamaged(store.uri_of(file.name), "its bytes are not those that were committed")
    stored = pq.ParquetFile(pa.BufferReader(data))
    count = commit.stored if kind == "samples" else commit.quarantined
    if stored.metadata.num_rows != count:
        message = f"has {stored.metadata.num_rows} rows, its commit record says {count}"
        raise ObjectDamaged(store.uri_of(file.name), message)
    wanted = [name for name in columns if name != SHARD]
    table = stored.read(wanted, use_threads=False).replace_schema_metadata(None)  # callers have threads of their own
    if SHARD not in columns:
        return table
    return table.append_column(SHARD, pa.array([commit.shard.name] * count, pa.string())).select(
        [name.partition(".")[0] for name in columns]
    )


def quarantine_rows(store: ObjectStore, commits: CommitTable) -> Iterator[dict[str, str]]:
    """The bad samples of these parts, part by part; each with its shard. Raises as `read_part_table` does."""
    if not commits.totals.quarantined:
        return
    names = ["key", "index", "reason", "detail", SHARD]
    for place in np.flatnonzero(commits.column("quarantined")).tolist():
        yield from read_part_table(store, commits[place], "quarantine", names).to_pylist()
