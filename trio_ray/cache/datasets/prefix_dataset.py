"""A cache as a map-style dataset: any sample by its number."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Dataset

from trio_ray.cache.datasets.batch import Sample
from trio_ray.cache.datasets.process_cache import ProcessCache
from trio_ray.cache.pruned_cache import THREADS, OnBad, PrunedCache
from trio_ray.cache.unreadable import UnreadablePrefix


class PrefixDataset(Dataset[Sample | UnreadablePrefix]):
    """Samples by number, in the order of `PrunedCache.keys`; for a `DataLoader` with `collate_fn=collate`.

    A batch's samples are read with many requests in flight, and only the tables of their parts. Pickled, or forked into
    workers, it takes no connection along.

    Args:
        cache: where the prefixes are. What is committed later is not seen.
        restore: give prefixes; else the bytes as they are stored, to be restored on a device by `prefetch`.
        on_bad: for a sample that is gone or damaged, raise the error or return it; `collate` puts it into
            `Batch.skipped`.
        threads: requests in flight for one batch.
    """

    def __init__(
        self, cache: PrunedCache, restore: bool = True, on_bad: OnBad = "error", threads: int = THREADS
    ) -> None:
        self._cache = ProcessCache(cache)
        self._restore = restore
        self._on_bad = on_bad
        self._threads = threads

    def __len__(self) -> int:
        return len(self._cache.get())

    def __getitem__(self, number: int) -> Sample | UnreadablePrefix:
        """One sample. Raises as `PrunedCache.stream` does, and `IndexError` beyond the last one."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample | UnreadablePrefix]:
        """Several samples at once: what a `DataLoader` asks for."""
        cache = self._cache.get()
        total = len(cache)
        rows = cache.rows_at([number + total if number < 0 else number for number in numbers])
        fetched = cache.fetch(rows, self._threads)
        samples: list[Sample | UnreadablePrefix] = [*(cache.restore(fetched) if self._restore else fetched)]
        for outcome in samples:
            if isinstance(outcome, UnreadablePrefix) and self._on_bad == "error":
                raise outcome
        return samples
