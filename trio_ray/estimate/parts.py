"""How a cache's fixed shares grow: tables, records and the ends of tars, measured on a part that is really written."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from trio_ray.estimate.sizes import SAMPLE_HASH, MemberSize, SizeModel
from trio_ray.kv.encode import CodedPrefix
from trio_ray.precompute.rows import good_sample, sample_row
from trio_ray.precompute.stored_batch import StoredSample
from trio_ray.source.shards import evenly
from trio_ray.store.commits import CommitRecord, ShardInput
from trio_ray.store.dataset import SCHEMA_VERSION, Dataset, package_version, utc_now
from trio_ray.store.layout import commit_name
from trio_ray.store.local import LocalStore
from trio_ray.store.locators import LOCATOR
from trio_ray.store.objects import ObjectStore
from trio_ray.store.parts import PartWriter
from trio_ray.store.row_groups import write_row_groups
from trio_ray.store.tar_members import END

QUARANTINE_TABLE_BYTES = 3_000
"""Bytes of a quarantine table with a few rows."""

PROBE_ROWS = 256
"""Samples of the part that is written without a model."""


@dataclass(frozen=True)
class PartShares:
    """Bytes that are stored besides the samples' members.

    Attributes:
        row: a sample's row in its part's table, and its locator.
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
    smaller, _ = write_row_groups(table.slice(0, half))
    row = (table_file.size - len(smaller)) / (table.num_rows - half)
    fixed = table_file.size - row * table.num_rows + record + len(END)
    return PartShares(row + LOCATOR.itemsize, fixed)


def probe_shares(model: SizeModel, size: MemberSize) -> PartShares:
    """What rows and parts take: a part of the drawn samples is written with made-up kept tokens and empty members.

    Stored targets (`cache.targets`) are not in it.
    """
    samples = evenly(model.workload.samples, PROBE_ROWS)
    frames = model.frames(PROBE_ROWS)
    times = np.random.default_rng(0).exponential(10.0, (len(samples), 2))
    dataset = Dataset({}, SAMPLE_HASH, len(samples), utc_now(), package_version(), SCHEMA_VERSION)
    shard = ShardInput("estimate", "estimate", 0, SAMPLE_HASH, None)
    with tempfile.TemporaryDirectory(prefix="trio-ray-estimate-") as folder:
        store = LocalStore(folder)
        writer = PartWriter(store, dataset, shard, 0, "estimate")
        for sample, frame, (prefill_ms, encode_ms) in zip(samples, frames, times, strict=True):
            good = good_sample(sample, model.method.schedule)
            row = sample_row(good, StoredSample(frame), size.codec, prefill_ms, encode_ms)
            _add(writer, row, frame, size)
        commit = writer.commit(last=True)
        assert commit is not None  # nobody else writes here
        return part_shares(store, commit)


def _add(writer: PartWriter, row: dict[str, object], frame: CodedPrefix, size: MemberSize) -> None:
    if size.level == "indices":
        writer.add(row, None)
    else:
        writer.add(row, frame.kept[0].numpy().tobytes() if frame.kept else b"", kind=size.level)
