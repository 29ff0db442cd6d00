"""The device's share: groups, out-of-memory, and a budget that learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.config import CacheConfig
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.registry import make_codec
from trio_ray.method import suppression
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.method.suppression import Speculation
from trio_ray.model.prepare import AnswerTokens, PreparedSample
from trio_ray.model.replica import Prefilled, Replica
from trio_ray.model.targets import answer_targets
from trio_ray.precompute import model_stage
from trio_ray.precompute.model_stage import ModelStage, StoredGroup
from trio_ray.source.sample import BadSample, Reason

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.3)


@dataclass
class SmallMemory(Replica):
    """A replica whose device runs out of memory above so many rows. (No test machine's memory can be filled safely.)"""

    most_rows: int = 0
    tried: list[int] = field(default_factory=list)

    def prefill(self, samples: Sequence[PreparedSample], method: Method, **options: Any) -> Prefilled:
        rows = sum(sample.rows for sample in samples)
        self.tried.append(rows)
        if rows > self.most_rows:
            raise torch.OutOfMemoryError("no room")
        return super().prefill(samples, method, **options)


def make_stage(llama: Replica, most_rows: int, token_budget: int) -> tuple[ModelStage, SmallMemory]:
    fields = {name: getattr(llama, name) for name in Replica.__dataclass_fields__}
    replica = SmallMemory(**{**fields, "_last_image": None}, most_rows=most_rows)
    return ModelStage(
        replica, Method(SCHEDULE, Trio()), make_codec({"name": "raw"}), CacheConfig(top_k=4), token_budget
    ), replica


@pytest.fixture
def prepared(llama: Replica) -> list[PreparedSample]:
    return prepare(llama, samples_of_all_grids(12))


def test_out_of_memory_halves_the_budget_and_loses_no_sample(llama: Replica, prepared: list[PreparedSample]) -> None:
    total = sum(sample.rows for sample in prepared)
    stage, replica = make_stage(llama, total // 3, total)
    groups = stage.run(prepared)
    assert [length for group in groups if isinstance(group, StoredGroup) for length in group.lengths] == [
        s.rows for s in prepared
    ]
    assert total // 8 <= stage.token_budget <= total // 2
    # The budget holds from now on: the same samples again do not run out of memory again.
    replica.tried.clear()
    assert all(isinstance(group, StoredGroup) for group in stage.run(prepared))
    assert max(replica.tried) <= max(stage.token_budget, *(sample.rows for sample in prepared))


def test_groups_hold_what_one_group_holds(llama: Replica, prepared: list[PreparedSample]) -> None:
    total = sum(sample.rows for sample in prepared)
    (whole,) = make_stage(llama, total, total)[0].run(prepared)
    assert isinstance(whole, StoredGroup)
    halves = make_stage(llama, total // 2, total)[0].run(prepared)
    split = [sample for group in halves if isinstance(group, StoredGroup) for sample in group.stored()]
    for one, other in zip(whole.stored(), split, strict=True):
        assert [kept.tolist() for kept in one.coded.kept] == [kept.tolist() for kept in other.coded.kept]
        assert torch.equal(one.coded.top_ids, other.coded.top_ids)


def test_a_sample_that_fits_not_even_alone_is_bad_and_the_others_stay(
    llama: Replica, prepared: list[PreparedSample]
) -> None:
    sizes = sorted({sample.rows for sample in prepared})
    stage, _ = make_stage(llama, sizes[-2], sum(sample.rows for sample in prepared))
    results = stage.run(prepared)
    stored = [sample for group in results if isinstance(group, StoredGroup) for sample in group.samples]
    bad = [sample for sample in results if isinstance(sample, BadSample)]
    assert [sample.index for sample in stored] == [sample.index for sample in prepared if sample.rows < sizes[-1]]
    assert [(one.key, one.reason) for one in bad] == [
        (sample.key, Reason.OUT_OF_MEMORY) for sample in prepared if sample.rows == sizes[-1]
    ]
    assert bad
    assert [lengths for group in results if isinstance(group, StoredGroup) for lengths in group.lengths] == [
        sample.rows for sample in stored
    ]


def test_targets_survive_running_out_of_memory_behind_the_prefill(
    llama: Replica, prepared: list[PreparedSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their pass may be what needs too much; then the batch is halved as for any other reason."""
    answered = [replace(one, answer_tokens=AnswerTokens((), (5, 6, 2))) for one in prepared]
    cache = CacheConfig(top_k=4, targets="top_k")
    total = sum(sample.rows for sample in prepared)
    whole = replace(make_stage(llama, total, total)[0], cache=cache).run(answered)
    truth = [sample for group in whole if isinstance(group, StoredGroup) for sample in group.stored()]
    stage = replace(make_stage(llama, total, total)[0], cache=cache)
    monkeypatch.setattr(model_stage, "answer_targets", small_memory(answer_targets, most=5))
    groups = stage.run(answered)
    found = [sample for group in groups if isinstance(group, StoredGroup) for sample in group.stored()]
    assert len(groups) > 2
    assert stage.token_budget < total
    for ours, theirs in zip(found, truth, strict=True):
        assert ours.targets is not None
        assert theirs.targets is not None
        assert torch.equal(ours.targets.ids, theirs.targets.ids)
        assert torch.allclose(ours.targets.logprobs, theirs.targets.logprobs, atol=1e-5)


def small_memory(function: Any, most: int) -> Any:
    """The function, with room for so many samples at once."""

    def run(decoder: Any, batch: PrefixBatch, *arguments: Any) -> Any:
        if len(batch.lengths) > most:
            raise torch.OutOfMemoryError("no room")
        return function(decoder, batch, *arguments)

    return run


def test_a_sample_above_the_budget_runs_alone(llama: Replica, prepared: list[PreparedSample]) -> None:
    stage, replica = make_stage(llama, 1 << 30, 1)
    assert len(stage.run(prepared)) == len(prepared)
    assert replica.tried == [sample.rows for sample in prepared]
    assert replace(stage).token_budget == 1


def test_what_has_not_converged_is_recomputed_and_the_next_batches_look_at_more(
    llama: Replica, prepared: list[PreparedSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few candidates: the stage finds out when the results come, never before."""
    monkeypatch.setattr(suppression, "LEAST_WINDOW", 1)
    stage, replica = make_stage(llama, 1 << 30, 1 << 30)
    stage.method = Method(SCHEDULE, Trio(threshold=0.2))
    exact = replica.prefill(prepared, stage.method).prefixes
    replica.tried.clear()
    stage._speculation = Speculation(window=1)
    (group,) = stage.run(prepared)
    assert isinstance(group, StoredGroup)
    assert len(replica.tried) == 1
    (again,) = group.arrived()
    assert isinstance(again, StoredGroup)
    for prefix, stored in zip(exact, again.stored(), strict=True):
        assert [kept.tolist() for kept in prefix.kept] == [kept.tolist() for kept in stored.coded.kept]
    assert len(replica.tried) == 2
    assert again.milliseconds > 0.1, "its time is that of its own prefill"
    assert stage._speculation.window == 2


def test_recomputing_halves_the_batch_where_the_memory_has_become_too_small(
    llama: Replica, prepared: list[PreparedSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches after it hold memory by then; a sample that fits no more becomes a bad one, and no other is lost."""
    monkeypatch.setattr(suppression, "LEAST_WINDOW", 1)
    stage, replica = make_stage(llama, 1 << 30, 1 << 30)
    stage.method = Method(SCHEDULE, Trio(threshold=0.2))
    stage._speculation = Speculation(window=1)
    (group,) = stage.run(prepared)
    assert isinstance(group, StoredGroup)
    largest = max(prepared, key=lambda sample: sample.rows)
    replica.most_rows = largest.rows - 1
    arrived = group.arrived()
    done = {sample.key for one in arrived if isinstance(one, StoredGroup) for sample in one.samples}
    bad = {one.key: one.reason for one in arrived if isinstance(one, BadSample)}
    assert set(bad.values()) == {Reason.OUT_OF_MEMORY}
    assert bad.keys() == {sample.key for sample in prepared if sample.rows == largest.rows}
    assert done == {sample.key for sample in prepared} - bad.keys()
