"""Tables and records of a part, written for the drawn samples without a model, to see what they take."""

from __future__ import annotations

import tempfile

import numpy as np

from trio_ray.estimate.draw import evenly
from trio_ray.estimate.parts import PartShares, part_shares
from trio_ray.estimate.sizes import SAMPLE_HASH, MemberSize, SizeModel
from trio_ray.kv.encode import CodedPrefix
from trio_ray.precompute.rows import good_sample, sample_row
from trio_ray.precompute.stored_batch import StoredSample
from trio_ray.store.commits import ShardInput
from trio_ray.store.dataset import SCHEMA_VERSION, Dataset, package_version, utc_now
from trio_ray.store.local import LocalStore
from trio_ray.store.parts import PartWriter

MOST_ROWS = 256


def probe_shares(model: SizeModel, size: MemberSize) -> PartShares:
    """What rows and parts take: a part of the drawn samples is written with made-up kept tokens and empty members.

    Stored targets (`cache.targets`) are not in it.
    """
    samples = evenly(model.workload.samples, MOST_ROWS)
    frames = model.frames(MOST_ROWS)
    times = np.random.default_rng(0).exponential(10.0, (len(samples), 2))
    dataset = Dataset({}, SAMPLE_HASH, len(samples), utc_now(), package_version(), SCHEMA_VERSION)
    shard = ShardInput("plan", "plan", 0, SAMPLE_HASH, None)
    with tempfile.TemporaryDirectory(prefix="trio-ray-plan-") as folder:
        store = LocalStore(folder)
        writer = PartWriter(store, dataset, shard, 0, "plan")
        for sample, frame, (prefill_ms, encode_ms) in zip(samples, frames, times, strict=True):
            good = good_sample(sample, model.schedule)
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
