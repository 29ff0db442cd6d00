"""The packing budget that is found is one that runs, pays and fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.model.corpus import make_sample, prepare, words
from trio_ray.method.method import Method
from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.random import RandomChoice
from trio_ray.method.selectors.selector import Selection
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.precompute.token_budget import GAIN, BudgetSearch, Trial, as_of_new_images, find_budget

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.3)


@dataclass(frozen=True)
class SmallMemory(RandomChoice):
    """Random selection on a device that holds `most` rows and no more."""

    most: int = 0

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        if sum(rows.ends) > self.most:
            raise torch.OutOfMemoryError("as CUDA says it")
        return super().select(hidden, rows, proxy, keep)


@pytest.fixture
def samples(llama: Replica) -> list[PreparedSample]:
    """Three prompts of different lengths, under 128 rows each."""
    return prepare(llama, [make_sample([(40 + 8 * n, 50)], words(3 + n, n), n) for n in range(3)])


def test_budgets_double_until_the_limit_and_the_best_is_one_of_those_tried(
    llama: Replica, samples: list[PreparedSample]
) -> None:
    search = find_budget(llama, samples, Method(SCHEDULE, RandomChoice()), most=1024)
    budgets = [trial.token_budget for trial in search.trials]
    longest = max(sample.rows for sample in samples)
    assert longest <= budgets[0] < 2 * longest
    doubled = [budget for budget in budgets if budget & (budget - 1) == 0]
    assert doubled == [budgets[0] << step for step in range(len(doubled))]
    assert max(budgets) <= 1024
    assert search.best in search.trials
    assert all(trial.samples_per_s > 0 for trial in search.trials)
    assert (search.ended_by == "limit") == (doubled[-1] == 1024 and search.ended_by != "gain")


def test_running_out_of_memory_ends_the_search_below_it(llama: Replica, samples: list[PreparedSample]) -> None:
    search = find_budget(llama, samples, Method(SCHEDULE, SmallMemory(most=300)), most=1 << 13)
    assert search.ended_by in ("memory", "gain")
    assert max(trial.token_budget for trial in search.trials) <= 512
    least = min(sample.rows for sample in samples)
    with pytest.raises(torch.OutOfMemoryError):
        find_budget(llama, samples, Method(SCHEDULE, SmallMemory(most=least - 1)))


def test_the_best_budget_is_the_smallest_of_about_equal_speed() -> None:
    rates = {128: 50.0, 256: 99.0, 512: 100.0, 1024: 100.5}
    trials = tuple(Trial(budget, rate, None) for budget, rate in rates.items())
    assert BudgetSearch(trials, "gain").best.token_budget == 256
    assert rates[256] * GAIN > rates[1024]


def test_repeated_samples_count_as_questions_about_other_images(samples: list[PreparedSample]) -> None:
    """Else a large budget would seem to encode nothing; two questions about one image still share it."""
    two = [samples[0], samples[0], samples[1]]
    hashes = [[sample.images[0].hash for sample in as_of_new_images(two, name)] for name in ("a", "b")]
    assert hashes[0][0] == hashes[0][1] != hashes[0][2]
    assert not set(hashes[0]) & set(hashes[1])
    assert hashes[0] == [sample.images[0].hash for sample in as_of_new_images(two, "a")]
