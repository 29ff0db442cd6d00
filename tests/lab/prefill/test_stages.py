"""Stages: a prefill's time taken apart, without changing what it computes."""

from __future__ import annotations

import time

import pytest
import torch

from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.lab.prefill.authors import AuthorsTrio
from trio_ray.lab.prefill.pruned import Pruned
from trio_ray.lab.prefill.stages import STAGES, StageClock, pruned_stages, unpruned_stages
from trio_ray.lab.prefill.unpruned import Unpruned
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.random import RandomChoice
from trio_ray.method.selectors.selector import Selector
from trio_ray.method.selectors.trio import Trio
from trio_ray.method.selectors.trio_plus import TrioPlus
from trio_ray.model.replica import Replica

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.3)


@pytest.mark.parametrize(
    "selector", [Trio(), TrioPlus(), RandomChoice(), AuthorsTrio()], ids=lambda s: type(s).__name__
)
def test_every_stage_has_its_share_and_they_add_up_to_the_prefill(llama: Replica, selector: Selector) -> None:
    samples = prepare(llama, samples_of_all_grids(8))
    contestant = Pruned(llama, samples, 400, Method(SCHEDULE, selector, selector.positions))
    stages = pruned_stages(contestant, 0)
    started = time.perf_counter()
    for batch in contestant.batches(5):
        contestant.run(batch)
    whole = 1e3 * (time.perf_counter() - started) / len(samples)
    assert tuple(stages) == STAGES
    assert all(milliseconds >= 0 for milliseconds in stages.values())
    assert min(stages[name] for name in ("vision", "score", "gather", "layers behind it", "copy to host")) > 0
    assert 0.3 * whole < sum(stages.values()) - stages["copy to host"] < 3 * whole


def test_an_unpruned_prefill_is_tower_and_layers(llama: Replica) -> None:
    stages = unpruned_stages(Unpruned(llama, prepare(llama, samples_of_all_grids(6)), 2), 0)
    assert tuple(stages) == STAGES
    assert {name for name, milliseconds in stages.items() if milliseconds > 0} == {
        "vision", "layers before the first prune"
    }  # fmt: skip


def test_being_timed_changes_no_choice(llama: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows go through the layers as without a clock."""
    samples = prepare(llama, samples_of_all_grids(6))
    kept = []
    plain = llama.prefill

    def remember(*args: object, **kwargs: object) -> object:
        prefilled = plain(*args, **kwargs)  # type: ignore[arg-type]
        kept.append([indices.tolist() for indices in prefilled.batch.kept])
        return prefilled

    monkeypatch.setattr(llama, "prefill", remember)
    contestant = Pruned(llama, samples, 100_000, Method(SCHEDULE, TrioPlus(), "original"))
    contestant.run(contestant.batches(0)[0])
    pruned_stages(contestant, 1)
    assert len(kept) == 2
    assert kept[0] == kept[1]


def test_a_clock_adds_up_spans_of_one_name_and_ignores_what_is_not_open() -> None:
    clock = StageClock(torch.device("cpu"))
    for _ in range(2):
        with clock.span("nap"):
            time.sleep(0.01)
    clock.stop("never opened")
    assert 20 <= clock.milliseconds("nap") < 500
    assert clock.milliseconds("never opened") == 0
