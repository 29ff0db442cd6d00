"""The packing budget that suits a model, its samples and the memory at hand, found by trying."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import Literal

from trio_ray.method.method import Method
from trio_ray.method.suppression import Speculation
from trio_ray.model.packing import pack
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.tensors import Measured, attempt, measure

MOST_ROWS = {"cuda": 1 << 18, "cpu": 1 << 13}
"""Where the search ends at the latest, by kind of device."""

GAIN = 1.02
"""A larger budget must be this much faster to be worth its memory; less is noise."""

PATIENCE = 2
"""Doublings in a row without such a gain that end the search: the rate has steps, where batches happen to fit badly."""

GROUPS, PASSES, LONG_S = 2, 2, 3.0
"""Batches in one trial; timed passes over them, of which the faster counts; a pass so long that it needs no second."""


@dataclass(frozen=True)
class Trial:
    """What one budget reached. `peak_bytes` is None where the device does not tell its memory."""

    token_budget: int
    samples_per_s: float
    peak_bytes: int | None


@dataclass(frozen=True)
class BudgetSearch:
    """What a search tried, in order, and what ended it: no more to gain, the memory, or the largest budget allowed."""

    trials: tuple[Trial, ...]
    ended_by: Literal["gain", "memory", "limit"]

    @property
    def best(self) -> Trial:
        """The smallest budget that is about as fast as the fastest."""
        fastest = max(trial.samples_per_s for trial in self.trials)
        good = [trial for trial in self.trials if trial.samples_per_s * GAIN >= fastest]
        return min(good, key=lambda trial: trial.token_budget)


def find_budget(
    replica: Replica,
    samples: Sequence[PreparedSample],
    method: Method,
    memory_limit: int | None = None,
    most: int | None = None,
) -> BudgetSearch:
    """Find the number of prompt rows to pack into a batch: double while it pays, then try between.

    The samples are repeated as often as a batch needs, each repetition as if of other images. A trial that runs out of
    memory, or exceeds the limit, ends the doubling.

    Args:
        replica: the loaded model.
        samples: what the job's samples are like; some dozens are enough.
        method: which image tokens a prefix keeps.
        memory_limit: most bytes on the device that a budget may need, weights included; None allows all there is.
        most: largest budget to try, in prompt rows; None stands for `MOST_ROWS`.

    Raises:
        torch.OutOfMemoryError: not even batches of about one sample fit into the memory.
    """
    most = most or MOST_ROWS[replica.device.type]
    search = _Search(replica, samples, method, memory_limit)
    budget = 1 << math.ceil(math.log2(max(sample.rows for sample in samples)))
    trials = [search.measure(budget)]
    ended_by: Literal["gain", "memory", "limit"] = "limit"
    while 2 * budget <= most:
        budget *= 2
        trial = search.attempt(budget)
        if trial is None:
            ended_by = "memory"
            break
        trials.append(trial)
        before = trials[:-PATIENCE]
        if before and max(t.samples_per_s for t in trials[-PATIENCE:]) < GAIN * max(t.samples_per_s for t in before):
            ended_by = "gain"
            break
    around = BudgetSearch(tuple(trials), ended_by).best.token_budget
    for between in (3 * around // 4, 3 * around // 2):
        trial = search.attempt(between) if between <= most else None
        if trial is not None:
            trials.append(trial)
    return BudgetSearch(tuple(trials), ended_by)


def as_of_new_images(samples: Iterable[PreparedSample], name: object) -> list[PreparedSample]:
    """The samples with other image hashes, the same `name` giving the same ones: a replica that has just encoded
    their images encodes them again. Questions about one image still share it.
    """
    return [
        replace(sample, images=tuple(replace(image, hash=f"{image.hash}/{name}") for image in sample.images))
        for sample in samples
    ]


@dataclass(frozen=True)
class _Search:
    replica: Replica
    samples: Sequence[PreparedSample]
    method: Method
    memory_limit: int | None

    def attempt(self, budget: int) -> Trial | None:
        """A trial, or None where the memory does not allow it."""
        trial = attempt(self.replica.device, partial(self.measure, budget))
        if trial is None:
            return None
        too_much = self.memory_limit is not None and (trial.peak_bytes or 0) > self.memory_limit
        return None if too_much else trial

    def measure(self, budget: int) -> Trial:
        """One untimed batch of this budget, then the timed passes."""
        self._run(self._groups(budget, 0)[:1])
        timed: list[Measured] = []
        while len(timed) < PASSES and (not timed or timed[-1].seconds < LONG_S):
            groups = self._groups(budget, 1 + len(timed))
            timed.append(measure(self.replica.device, partial(self._run, groups)))
        peaks = [result.peak_bytes for result in timed if result.peak_bytes is not None]
        return Trial(budget, sum(map(len, groups)) / min(t.seconds for t in timed), max(peaks, default=None))

    def _groups(self, budget: int, number: int) -> list[list[PreparedSample]]:
        return list(islice(pack(self._endless(number), budget), GROUPS))

    def _endless(self, number: int) -> Iterator[PreparedSample]:
        for round_ in count():
            yield from as_of_new_images(self.samples, f"{number}.{round_}")

    def _run(self, groups: Sequence[Sequence[PreparedSample]]) -> None:
        for group in groups:
            _ = self.replica.prefill(group, self.method, speculation=Speculation()).batch
