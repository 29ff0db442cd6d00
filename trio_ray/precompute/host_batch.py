"""A batch once the device is done with it: what is stored of it in host memory, and what is known of its samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trio_ray.precompute.host_memory import Block
from trio_ray.precompute.stored_batch import StoredBatch, StoredSample
from trio_ray.source.sample import BadSample


@dataclass(frozen=True)
class GoodSample:
    """A sample that is stored: its place in the shard, and the columns of its row that were known before the model."""

    key: str
    index: int
    columns: dict[str, Any]


@dataclass(frozen=True)
class HostGroup:
    """What is stored of samples that the model took together, the time that the device needed for them, and the block
    of memory that all of it lies in, where it was copied to one.
    """

    batch: StoredBatch
    milliseconds: float
    block: Block | None = None


@dataclass(frozen=True)
class Placed:
    """A good sample with what is stored of it, and the device's time for it."""

    sample: GoodSample
    stored: StoredSample
    milliseconds: float


@dataclass(frozen=True)
class HostBatch:
    """Samples of a shard in order, good and bad, and the groups of the good ones."""

    samples: list[GoodSample | BadSample]
    groups: list[HostGroup]

    def placed(self) -> Iterator[Placed]:
        """The good samples with what is stored of them. A group's time is shared out by rows."""
        good = (sample for sample in self.samples if isinstance(sample, GoodSample))
        for group in self.groups:
            stored = group.batch.split()
            per_row = group.milliseconds / sum(item.coded.length for item in stored)
            for item in stored:
                yield Placed(next(good), item, per_row * item.coded.length)
