"""Stored bytes of a batch of samples, read into one buffer and compared with their checksums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from trio_ray.cache.arena import Block
from trio_ray.cache.ranges import Run, read_run
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.store.objects import ObjectStore

Row = dict[str, Any]
"""A sample's row of the table: column name -> value."""


@dataclass(frozen=True)
class StoredBytes:
    """A sample's row and its prefix as it is stored, (bytes,) uint8, already compared with its checksum.

    A tensor, because a data loader's workers hand tensors over in shared memory.
    """

    row: Row
    data: Tensor


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


def fetch(store: ObjectStore, wanted: Wanted, pool: ThreadPoolExecutor | None, block: Block | None = None) -> Fetched:
    """Read all runs into one buffer.

    Args:
        store: where they are.
        wanted: what to read.
        pool: threads for the runs; without, they are read one behind the other in this thread.
        block: memory for them; new memory if not given.

    Raises:
        StoreError: the store failed in another way than for a lost or damaged object. Nothing is being read into the
            buffer any more by then.
    """
    data = torch.empty(wanted.size, dtype=torch.uint8) if block is None else block.tensor
    buffer = data.numpy().data
    errors: dict[int, UnreadablePrefix | None] = {}
    if pool is None or len(wanted.runs) < 2:
        for run in wanted.runs:
            errors |= read_run(store, run, buffer)
    else:
        futures = [pool.submit(read_run, store, run, buffer) for run in wanted.runs]
        try:
            for future in futures:
                errors |= future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
    stored = _cut(data, wanted.runs)
    samples = [errors[number] or StoredBytes(row, stored[number]) for number, row in enumerate(wanted.rows)]
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
