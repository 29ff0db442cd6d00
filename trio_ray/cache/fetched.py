"""Stored bytes of a batch of samples, read into one buffer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from trio_ray.cache.arena import Block, SharedBatchMemory
from trio_ray.cache.ranges import Run, read_runs
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.ordered import map_all
from trio_ray.store.objects import ObjectStore
from trio_ray.store.reader_process import ReaderProcess

Row = dict[str, Any]
"""A sample's row of the table: column name -> value."""


@dataclass(frozen=True)
class StoredBytes:
    """A sample's row and its prefix as it is stored.

    Attributes:
        row: the sample's.
        data: (bytes,) uint8; a tensor, because a data loader's workers hand tensors over in shared memory.
        checksum: what the bytes have yet to be compared with; None where that has been done.
    """

    row: Row
    data: Tensor
    checksum: str | None = None


@dataclass(frozen=True, repr=False)
class Fetched(Sequence[StoredBytes | UnreadablePrefix]):
    """A batch of samples as they are stored: for each its bytes, or the error that says why there are none.

    Attributes:
        samples: in the order of the rows that were asked for.
        data: (bytes,) uint8, the one buffer that the samples' bytes are views of.
        block: where `data` lies in an arena, if it does; its memory is used again once it is released.
    """

    samples: tuple[StoredBytes | UnreadablePrefix, ...]
    data: Tensor
    block: Block | None = None

    def __repr__(self) -> str:
        bad = sum(isinstance(sample, UnreadablePrefix) for sample in self.samples)
        return f"Fetched({len(self)} samples, {len(self.data):,} bytes" + (f", {bad} unreadable)" if bad else ")")

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, number: int) -> StoredBytes | UnreadablePrefix: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[StoredBytes | UnreadablePrefix]: ...

    def __getitem__(self, number: Any) -> Any:
        return self.samples[number]

    def __iter__(self) -> Iterator[StoredBytes | UnreadablePrefix]:
        return iter(self.samples)


@dataclass(frozen=True)
class Wanted:
    """Rows to fetch, the runs that their bytes are read by, and the bytes of the buffer for them."""

    rows: Sequence[Row]
    runs: Sequence[Run]
    size: int


Outcomes = dict[int, UnreadablePrefix | None]
"""By a sample's number why it cannot be used, or None."""


class Reader(ABC):
    """A way to read the runs of a batch. Threads may share it.

    Attributes:
        compares: bytes with their checksums; else whoever uses them has to.
    """

    compares = True

    @abstractmethod
    def read(self, runs: Sequence[Run], data: Tensor, block: Block | None) -> Outcomes:
        """Read runs into their places.

        Args:
            runs: of a batch.
            data: (bytes,) uint8, the batch's buffer.
            block: that it lies in, if any.

        Raises:
            StoreError: the store failed in another way than for a lost or damaged object. Nothing is being read into
                the buffer any more by then.
        """

    def close(self) -> None:  # noqa: B027
        """Let go of what it reads with; by default nothing."""


class ThreadReader(Reader):
    """Reads in threads of this process, which also compare checksums. Close it.

    Args:
        store: where the bytes are.
        threads: requests in flight.
        at_once: tasks that the runs of a batch are dealt to. A task takes several runs where there are more, since
            each handing over costs Python's lock.
    """

    def __init__(self, store: ObjectStore, threads: int, at_once: int) -> None:
        self._store, self._at_once = store, at_once
        self._pool = ThreadPoolExecutor(threads)

    def read(self, runs: Sequence[Run], data: Tensor, block: Block | None) -> Outcomes:
        buffer = data.numpy().data
        dealt = [runs[number :: self._at_once] for number in range(min(self._at_once, len(runs)))]
        outcomes: Outcomes = {}
        for own in map_all(self._pool, lambda runs: read_runs(self._store, runs, buffer), dealt):
            outcomes |= own
        return outcomes

    def close(self) -> None:
        self._pool.shutdown()


class OwnThreadReader(Reader):
    """Reads one run behind the other in the thread that asks, and compares checksums."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read(self, runs: Sequence[Run], data: Tensor, block: Block | None) -> Outcomes:
        return read_runs(self._store, runs, data.numpy().data)


class OtherProcessReader(Reader):
    """Has another process read into memory that it shares with this one (`arena.SharedBatchMemory`)."""

    compares = False

    def __init__(self, process: ReaderProcess) -> None:
        self._process = process

    def read(self, runs: Sequence[Run], data: Tensor, block: Block | None) -> Outcomes:
        assert block is not None
        assert isinstance(block.memory, SharedBatchMemory)
        found = self._process.read(block.memory.block, [run.span for run in runs])
        outcomes: Outcomes = {}
        for run, own in zip(runs, found, strict=True):
            outcomes |= run.described(own)
        return outcomes


def fetch(reader: Reader, wanted: Wanted, block: Block | None = None) -> Fetched:
    """Read all runs into one buffer.

    Args:
        reader: how.
        wanted: what to read.
        block: memory for the bytes; new memory if not given.

    Raises:
        StoreError: see `Reader.read`.
    """
    data = torch.empty(wanted.size, dtype=torch.uint8) if block is None else block.tensor
    errors = reader.read(wanted.runs, data, block)
    stored = _cut(data, wanted.runs)
    sums = {
        member.number: None if reader.compares else member.checksum for run in wanted.runs for member in run.members
    }
    samples = [
        errors[number] or StoredBytes(row, stored[number], sums[number]) for number, row in enumerate(wanted.rows)
    ]
    return Fetched(tuple(samples), data, block)


def _cut(data: Tensor, runs: Sequence[Run]) -> dict[int, Tensor]:
    """By number the samples' bytes, in one call of torch: each gives Python's lock away."""
    sizes, numbers, end = [], [], 0
    for run in runs:
        for member in run.members:
            place = run.place(member)
            sizes += [place.start - end, place.stop - place.start]
            numbers.append(member.number)
            end = place.stop
    pieces = data.split([*sizes, len(data) - end])
    return dict(zip(numbers, pieces[1::2], strict=True))
