"""How a cache's fixed shares grow: tables, records and the ends of tars, measured on a part that is really written."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pyarrow.parquet as pq

from trio_ray.store.commits import CommitRecord
from trio_ray.store.layout import commit_name
from trio_ray.store.objects import ObjectStore
from trio_ray.store.tar_members import END

QUARANTINE_TABLE_BYTES = 3_000
"""Of a quarantine table with a few rows."""


@dataclass(frozen=True)
class PartShares:
    """Bytes beside the samples' members.

    Attributes:
        row: a sample's row in its part's table.
        part: all that a part has once: the table's frame, the tar's end, the commit record.
    """

    row: float
    part: float


def part_shares(store: ObjectStore, commit: CommitRecord) -> PartShares:
    """From a part in `store`: its table is written again with half of its rows, and what that saves is the rows'."""
    table_file = commit.files["samples"]
    table = pq.read_table(io.BytesIO(store.read(table_file.name)))
    record = store.stat(commit_name(commit.shard.name, commit.part)).size
    half = table.num_rows // 2
    if half == 0:
        return PartShares(0.0, table_file.size + record + len(END))
    sink = io.BytesIO()
    pq.write_table(table.slice(0, half), sink, compression="zstd")
    row = (table_file.size - sink.tell()) / (table.num_rows - half)
    return PartShares(row, table_file.size - row * table.num_rows + record + len(END))
