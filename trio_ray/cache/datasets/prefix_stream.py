"""A cache as an iterable dataset: each sample once an epoch, over all ranks and workers."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
import xxhash
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from trio_ray.cache.ahead import RestoreAhead
from trio_ray.cache.datasets.batch import Batch, collate
from trio_ray.cache.datasets.epoch_order import WINDOW, EpochOrder
from trio_ray.cache.datasets.process_cache import ProcessCache
from trio_ray.cache.fetched import Fetched, Row
from trio_ray.cache.pruned_cache import THREADS, OnBad, PrunedCache, StoredPrefix
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.errors import ConfigError


class PrefixStream(IterableDataset[Batch]):
    """Batches of prefixes, for `DataLoader(stream, batch_size=None, num_workers=...)`.

    Over all ranks and workers each sample comes exactly once an epoch: nothing is padded and nothing is repeated, so
    the last batch may be smaller, and ranks may differ by one sample. The order depends on seed, epoch, rank and world
    size alone: with any number of workers a rank gets the same batches in the same order, and each batch carries the
    state to go on behind it.

    Args:
        cache: where the prefixes are. What is committed later is not seen.
        batch_size: samples a batch.
        shuffle: see `EpochOrder`; else the order of `PrunedCache.keys`, where neighbours are read together.
        seed: of the shuffling; the same on all ranks.
        window: neighbouring samples that are shuffled among themselves.
        rank, world_size: of the process; by default those of `torch.distributed`, or the only one.
        restore: give prefixes; else the bytes as they are stored, to be restored on a device by `prefetch`.
        on_bad: for a sample that is gone or damaged, raise the error or put it into `Batch.skipped`. (What a worker
            raises, a `DataLoader` raises again as a RuntimeError with the same text.)
        threads: requests in flight, in each worker.

    Raises:
        ConfigError: sizes that make no sense.
    """

    def __init__(
        self,
        cache: PrunedCache,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        window: int = WINDOW,
        rank: int | None = None,
        world_size: int | None = None,
        restore: bool = True,
        on_bad: OnBad = "error",
        threads: int = THREADS,
    ) -> None:
        for name, size in (("batch_size", batch_size), ("window", window)):
            if size < 1:
                raise ConfigError(name, f"{size} must be at least 1")
        self._rank, self._world_size = _place_in_the_job(rank, world_size)
        self._cache = ProcessCache(cache)
        self._counts = cache.parts.counts
        self._samples = xxhash.xxh3_128_hexdigest(f"{cache.dataset.identity_hash} {cache.commits.digest}".encode())
        self._batch_size = batch_size
        self._shuffle, self._seed, self._window = shuffle, seed, window
        self._restore, self._on_bad, self._threads = restore, on_bad, threads
        # Shared memory, so that `set_epoch` reaches workers that live on from epoch to epoch: epoch, place, and
        # whether workers do the reading.
        self._start = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._behind: int | None = None

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return -(-len(self._order(int(self._start[0]))) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches from where the epoch starts; in a worker, every so many-th of them."""
        worker = get_worker_info()
        mine, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._start[2] = worker is not None
        epoch, start = int(self._start[0]), int(self._start[1])
        order = self._order(epoch)
        places = range(start + mine * self._batch_size, len(order), workers * self._batch_size)
        cache = self._cache.get()
        wanted = (order.numbers(place, place + self._batch_size) for place in places)
        rows = (row for numbers in wanted for row in cache.rows_at(numbers))
        with closing(self._read(cache, rows)) as read:
            outcomes = chain.from_iterable(read)
            for place in places:
                behind = min(place + self._batch_size, len(order))
                batch = collate(islice(outcomes, behind - place))
                if batch.skipped and self._on_bad == "error":
                    raise batch.skipped[0]
                self._behind = behind
                yield replace(batch, state=self._state(epoch, behind))

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch at its start with the next iteration. Without it every iteration is the same epoch."""
        self._start[:] = torch.tensor([epoch, 0, 0])
        self._behind = None

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration in this process is, or will begin; JSON has all its types.

        Raises:
            RuntimeError: workers do the reading, so this process does not know; take `Batch.state`.
        """
        if self._start[2]:
            raise RuntimeError("workers read this stream; take the `state` of the last batch that was used")
        return self._state(int(self._start[0]), int(self._start[1]) if self._behind is None else self._behind)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with the next iteration. Batch size and workers may have changed; nothing else may.

        Raises:
            ConfigError: it belongs to other samples or another order; names the first field that differs.
        """
        for name, value in self._state(0, 0).items():
            if name not in ("epoch", "place") and state.get(name) != value:
                raise ConfigError(f"state.{name}", f"{state.get(name)!r} is not this stream's, {value!r}")
        self._start[:] = torch.tensor([state["epoch"], state["place"], 0])
        self._behind = None

    def _read(
        self, cache: PrunedCache, rows: Iterator[Row]
    ) -> RestoreAhead[list[StoredPrefix | UnreadablePrefix]] | Generator[Fetched, None, None]:
        if self._restore:
            return cache.restored(rows, batch=self._batch_size, threads=self._threads)
        return cache.fetched(rows, self._batch_size, self._threads)

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self._counts, self._rank, self._world_size, self._shuffle, self._seed, epoch, self._window)

    def _state(self, epoch: int, place: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "place": place,
            "samples": self._samples,
            "world_size": self._world_size,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "window": self._window,
        }


def _place_in_the_job(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's rank among how many; what is not given comes from `torch.distributed` where it runs."""
    running = distributed.is_available() and distributed.is_initialized()
    rank = (distributed.get_rank() if running else 0) if rank is None else rank
    world_size = (distributed.get_world_size() if running else 1) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ConfigError("rank", f"{rank} is none of the {world_size} ranks 0 to {world_size - 1}")
    return rank, world_size
