"""A batch once the device is done with it: what is stored of it in host memory, and what is known of its samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import chain
from operator import attrgetter
from typing import Any

from trio_ray.precompute.stored_batch import StoredBatch, StoredSample
from trio_ray.shared_block import SharedBlock
from trio_ray.source.sample import BadSample


@dataclass(frozen=True)
class GoodSample:
    """A sample that is stored: its place in the shard, and the columns of its row that were known before the model."""

    key: str
    index: int
    columns: dict[str, Any]


@dataclass(frozen=True)
class Placed:
    """A good sample with what is stored of it, and the device's time for it."""

    sample: GoodSample
    stored: StoredSample
    milliseconds: float

    @property
    def index(self) -> int:
        """Of the sample in its shard."""
        return self.sample.index


@dataclass(frozen=True)
class HostGroup:
    """Samples that the model took together, what is stored of them, the time that the device needed for them, and the
    block of memory that all of it lies in, where it was copied to one.
    """

    samples: Sequence[GoodSample]
    batch: StoredBatch
    milliseconds: float
    block: SharedBlock | None = None

    def placed(self) -> Iterator[Placed]:
        """Each sample with what is stored of it. The time is shared out by rows."""
        stored = self.batch.split()
        per_row = self.milliseconds / sum(item.coded.length for item in stored)
        for sample, item in zip(self.samples, stored, strict=True):
            yield Placed(sample, item, per_row * item.coded.length)


@dataclass(frozen=True)
class HostBatch:
    """Consecutive samples of a shard: groups of good ones, and the bad ones between them."""

    groups: Sequence[HostGroup]
    bad: Sequence[BadSample] = ()

    def __iter__(self) -> Iterator[Placed | BadSample]:
        """All of them in the order of the shard."""
        good = chain.from_iterable(group.placed() for group in self.groups)
        return merge(good, self.bad, key=attrgetter("index"))
