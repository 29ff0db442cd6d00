"""The endless stream of samples that a worker is trained on, epoch after epoch, from any step on."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice

from trio_ray.cache.datasets.epoch_order import EpochOrder
from trio_ray.cache.fetched import Row
from trio_ray.cache.pruned_cache import OnBad, PrunedCache
from trio_ray.errors import ConfigError, PrefixError
from trio_ray.kv.embeds import Embeds
from trio_ray.kv.prefix import Prefix
from trio_ray.ordered import ordered_map

_AHEAD = 4
"""Samples that may wait, for every read in flight."""


@dataclass(frozen=True)
class CachedSample:
    """A row, its retained input embeddings, and its prefix where the teacher computes from it."""

    row: Row
    embeds: Embeds
    prefix: Prefix | None = None


class SampleStream:
    """One worker's share of a cache, shuffled anew each epoch; every sample is in one worker's share of each epoch.

    Args:
        cache: of level embeds.
        prefixes: a kv cache of the same samples, if prefixes are wanted.
        batch_size: samples a step, of this worker.
        rank, world_size: which worker this is, and how many there are.
        seed: of the shuffling; the same for all workers.
        threads: range reads in flight.
        on_bad: a sample that is gone or damaged ends the stream with its error, or is counted in `skipped`.

    Attributes:
        skipped: samples that were gone or damaged, so far.

    Raises:
        ConfigError: there are fewer samples than workers, so that this one has none.
    """

    def __init__(
        self,
        cache: PrunedCache,
        prefixes: PrunedCache | None,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        threads: int,
        on_bad: OnBad,
    ) -> None:
        self._cache, self._prefixes = cache, prefixes
        self._batch_size, self._threads, self._on_bad = batch_size, threads, on_bad
        self._place = (rank, world_size, True, seed)
        if not len(self._order(0)):
            raise ConfigError("cache", f"{cache.uri} has no sample for replica {rank} of {world_size}: use fewer")
        self.skipped = 0

    def batches(self, first_step: int) -> Generator[list[CachedSample], None, None]:
        """The batches from a step on; smaller by what was skipped.

        Raises:
            PrefixError: a sample is gone or damaged and must not be skipped.
            StoreError: the store failed.
        """
        numbers = (number for step in count(first_step) for number in self.numbers(step))
        outcomes = ordered_map(self._read, numbers, self._threads, lookahead=_AHEAD * self._threads)
        with closing(outcomes):
            while True:
                yield [sample for sample in map(self._sound, islice(outcomes, self._batch_size)) if sample is not None]

    def numbers(self, step: int) -> list[int]:
        """The numbers in the cache of a step's samples; epochs follow each other without a gap."""
        samples = len(self._order(0))
        numbers: list[int] = []
        while len(numbers) < self._batch_size:
            epoch, start = divmod(step * self._batch_size + len(numbers), samples)
            numbers += self._order(epoch).numbers(start, start + self._batch_size - len(numbers))
        return numbers

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self._cache.parts.counts, *self._place, epoch)

    def _read(self, number: int) -> CachedSample | PrefixError:
        row = self._cache.rows_at([number])[0]
        try:
            embeds = self._cache.embeds(row)
            prefix = None if self._prefixes is None else self._prefixes.prefix(row["key"], row["shard"])
        except PrefixError as error:
            return error
        return CachedSample(row, embeds, prefix)

    def _sound(self, outcome: CachedSample | PrefixError) -> CachedSample | None:
        if isinstance(outcome, CachedSample):
            return outcome
        if self._on_bad == "error":
            raise outcome
        self.skipped += 1
        return None
