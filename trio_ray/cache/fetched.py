"""Stored bytes of a batch of samples, read into one buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from trio_ray.cache.arena import Block
from trio_ray.cache.ranges import Run, read_runs
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.store.objects import ObjectStore

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


@dataclass(frozen=True)
class Reading:
    """How runs are read.

    Attributes:
        pool: threads for them.
        at_once: tasks that the runs of a batch are dealt to. A task takes several runs where there are more, since
            each handing over costs Python's lock.
        compare: bytes with their checksums, in these threads.
    """

    pool: ThreadPoolExecutor
    at_once: int
    compare: bool = True


def fetch(store: ObjectStore, wanted: Wanted, reading: Reading | None, block: Block | None = None) -> Fetched:
    """Read all runs into one buffer.

    Args:
        store: where they are.
        wanted: what to read.
        reading: how; without, they are read one behind the other in this thread, and compared.
        block: memory for them; new memory if not given.

    Raises:
        StoreError: the store failed in another way than for a lost or damaged object. Nothing is being read into the
            buffer any more by then.
    """
    data = torch.empty(wanted.size, dtype=torch.uint8) if block is None else block.tensor
    buffer = data.numpy().data
    errors: dict[int, UnreadablePrefix | None] = {}
    compare = reading is None or reading.compare
    if reading is None:
        errors |= read_runs(store, wanted.runs, buffer, compare)
    else:
        dealt = [wanted.runs[number :: reading.at_once] for number in range(min(reading.at_once, len(wanted.runs)))]
        futures = [reading.pool.submit(read_runs, store, runs, buffer, compare) for runs in dealt]
        try:
            for future in futures:
                errors |= future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
    stored = _cut(data, wanted.runs)
    sums = {member.number: None if compare else member.checksum for run in wanted.runs for member in run.members}
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
