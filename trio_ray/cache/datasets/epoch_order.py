"""In which order an epoch visits the samples: a function of seed, epoch and rank, computed where it is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

WINDOW = 4096
"""Neighbouring samples that are shuffled among themselves: some dozens of parts."""


@dataclass(frozen=True)
class EpochOrder:
    """One rank's share of an epoch.

    Shuffling puts the parts in a random order, the same for all ranks; cuts the samples in this order into equal,
    consecutive shares, one a rank; and shuffles each share window by window. So a rank reads whole parts, every sample
    is in exactly one share, shares differ by one sample at most, and any place of the order is found without walking
    there.

    Attributes:
        counts: (parts,) int64, samples of each part.
        rank, world_size: which of how many shares.
        shuffle: else the samples keep their order.
        seed, epoch: what the shuffling depends on.
        window: samples that are shuffled among themselves.
    """

    counts: np.ndarray
    rank: int
    world_size: int
    shuffle: bool
    seed: int
    epoch: int
    window: int = WINDOW

    def __len__(self) -> int:
        """Samples of this rank."""
        first, beyond = self._share
        return beyond - first

    def numbers(self, start: int, stop: int) -> list[int]:
        """Numbers in the cache of the samples at places `start .. stop` of the rank's order, cut off at its end."""
        stop = min(stop, len(self))
        places = np.arange(start, stop)
        if self.shuffle and start < stop:
            blocks = range(start // self.window, (stop - 1) // self.window + 1)
            shuffled = np.concatenate([self._window(block) for block in blocks])
            places = shuffled[places - blocks[0] * self.window]
        numbers: list[int] = self._samples(places + self._share[0]).tolist()
        return numbers

    @cached_property
    def _share(self) -> tuple[int, int]:
        total = int(self.counts.sum())
        return total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size

    @cached_property
    def _parts(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.counts))
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.counts))

    @cached_property
    def _edges(self) -> np.ndarray:
        """(parts + 1,) places where the parts, in their order, begin."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts[self._parts])])

    @cached_property
    def _first(self) -> np.ndarray:
        """(parts,) the number of each part's first sample."""
        return np.cumsum(self.counts) - self.counts

    def _window(self, block: int) -> np.ndarray:
        start = block * self.window
        size = min(self.window, len(self) - start)
        # The leading number keeps these streams apart from the one that orders the parts.
        return start + np.random.default_rng([1, self.seed, self.epoch, self.rank, block]).permutation(size)

    def _samples(self, places: np.ndarray) -> np.ndarray:
        """Places among all samples in the parts' order -> numbers in the cache."""
        slots = np.searchsorted(self._edges, places, "right") - 1
        return self._first[self._parts[slots]] + places - self._edges[slots]
