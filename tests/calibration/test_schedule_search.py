"""A searched schedule keeps as many tokens, is no worse than the default, and leaves what the user has set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trio_ray.calibration.answer_divergence import ReferenceBatch
from trio_ray.calibration.schedule_search import SELECTORS, FoundSchedule, search_schedule
from trio_ray.config import DEFAULT_INSTRUCTION, MethodConfig
from trio_ray.errors import ConfigError
from trio_ray.lab.accuracy.accuracy import prepared_batches
from trio_ray.lab.accuracy.questions import held_out_questions
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.catalogue import name_of
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica

FEW = 12
"""As few samples as a search takes, where what it measures of them is made up."""


@pytest.fixture(scope="module")
def samples(bundled: Replica) -> list[PreparedSample]:
    questions = held_out_questions(18, per_scene=1, split="validation", workers=1)
    return [sample for batch in prepared_batches(bundled, questions, 18) for sample in batch]


def search(
    replica: Replica,
    samples: list[PreparedSample],
    candidates: int = 12,
    on_candidate: Callable[[int], None] = lambda done: None,
    **method: object,
) -> FoundSchedule:
    config = MethodConfig.model_validate(method)
    return search_schedule(replica, samples, config, candidates=candidates, on_candidate=on_candidate)


def test_the_found_schedule_beats_the_default_at_the_same_cost(bundled: Replica, samples: list[PreparedSample]) -> None:
    found = search(bundled, samples, retention=0.1, selector="trio", settings={"threshold": 0.8})
    assert found.divergence < 0.9 * found.default_divergence  # the authors' schedule prunes this model too early
    assert (found.samples, found.held_back, found.tried) == (12, 6, 12)
    assert found.method.settings["threshold"] == 0.8
    built, default = (config.build(bundled.decoder.depth) for config in (found.method, MethodConfig(retention=0.1)))
    for sample in samples:
        tokens = built.schedule.mean_tokens(sample.image_tokens)
        assert tokens == pytest.approx(default.schedule.mean_tokens(sample.image_tokens), abs=1.0)
    assert f"{found.divergence:.4f} nats" in str(found)


def test_the_same_seed_and_samples_find_the_same(bundled: Replica, samples: list[PreparedSample]) -> None:
    first, second = (search(bundled, samples[:12], 4, layout="uniform", selector="trio-plus") for _ in range(2))
    assert first == second
    assert first.method.build(bundled.decoder.depth).layout == "uniform"


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"layout": "uniform"}, "represented"),
        ({"layout": "uniform", "dropped": "lost"}, "lost"),
        ({"layout": "ragged"}, "lost"),
        ({"layout": "ragged", "dropped": "represented"}, "represented"),
    ],
)
def test_whether_kept_rows_represent_others_is_searched_where_nothing_else_can_be(
    bundled: Replica,
    samples: list[PreparedSample],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    chosen: str,
) -> None:
    def divergences(self: ReferenceBatch, replica: Replica, methods: Sequence[Method]) -> list[list[float]]:
        return [[0.1 if method.dropped == "represented" else 0.2] * len(self.samples) for method in methods]

    monkeypatch.setattr(ReferenceBatch, "divergences", divergences)
    found = search(bundled, samples[:FEW], 20, selector="trio-plus", **settings)
    assert found.method.dropped == chosen
    assert f"dropped tokens {chosen}" in str(found)


@pytest.mark.parametrize("best", SELECTORS)
def test_a_selector_that_is_left_open_is_the_one_that_moves_answers_least(
    bundled: Replica, samples: list[PreparedSample], monkeypatch: pytest.MonkeyPatch, best: str
) -> None:
    def divergences(self: ReferenceBatch, replica: Replica, methods: Sequence[Method]) -> list[list[float]]:
        return [[0.1 if name_of(method.selector) == best else 0.2] * len(self.samples) for method in methods]

    monkeypatch.setattr(ReferenceBatch, "divergences", divergences)
    done: list[int] = []
    found = search(bundled, samples[:FEW], 24, schedule="auto", selector="auto", on_candidate=done.append)
    assert found.method.selector == best
    assert str(found).startswith(f"selector {best}, ")
    assert found.method.build(bundled.decoder.depth).schedule.layers == bundled.decoder.depth
    assert done == sorted(done)
    assert done[-1] == 24


def test_an_image_prefix_is_found_by_questions_that_follow_it(bundled: Replica) -> None:
    questions = held_out_questions(24, per_scene=2, split="validation", workers=1)
    (samples,) = prepared_batches(bundled, questions, 24, DEFAULT_INSTRUCTION)
    found = search_schedule(bundled, samples, MethodConfig(retention=0.1), scope="image", candidates=2)
    assert found.divergence <= found.default_divergence


def test_all_settings_are_tried_and_a_fixed_budget_is_never_exceeded_to_look_better(
    bundled: Replica, samples: list[PreparedSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prune point behind so many layers that these alone use the budget up is not tried."""
    tried: list[Schedule] = []
    settings: set[tuple[str, object]] = set()

    def divergences(self: ReferenceBatch, replica: Replica, methods: Sequence[Method]) -> list[list[float]]:
        settings.update(pair for method in methods for pair in method.selector.settings.items())
        schedules = [method.schedule for method in methods]
        tried.extend(schedule for schedule in schedules if schedule.keep is None)  # the depth profile has no budget
        return [[1.0 / (1 + schedule.prune_points[0])] * len(self.samples) for schedule in schedules]

    monkeypatch.setattr(ReferenceBatch, "divergences", divergences)
    most = max(sample.image_tokens for sample in samples)
    search(bundled, samples, 60, tokens=1.5 * most / bundled.decoder.depth, selector="trio")
    assert max(schedule.prune_points[0] for schedule in tried) == 1
    assert all(schedule.has_room_for(most) for schedule in tried)
    assert settings >= {(name, value) for name, values in Trio.searched.items() for value in values}


@pytest.mark.parametrize(
    ("divergences", "tried"),
    [
        ({0.0: 0.4, 0.25: 0.3, 0.5: 0.04}, 3),  # small enough
        ({0.0: 0.4, 0.25: 0.25, 0.5: 0.21, 0.75: 0.2, 1.0: 0.2}, 5),  # hardly more than any other's
    ],
)
def test_the_smallest_share_of_layers_that_hardly_moves_answers_is_chosen(
    bundled: Replica,
    samples: list[PreparedSample],
    monkeypatch: pytest.MonkeyPatch,
    divergences: dict[float, float],
    tried: int,
) -> None:
    """Each share is judged by the best of the default and of the schedules that follow from the depth profile."""
    layers = bundled.decoder.depth

    def divergence(schedule: Schedule) -> float:
        if schedule.keep is not None:  # for the profile: nothing is read from the last quarter's image rows
            return max(0.0, 1 - schedule.prune_points[0] / (0.75 * layers))
        best = divergences[schedule.full_layers / layers]
        return best if schedule.prune_points[-1] == 12 else 2 * best

    def of_methods(self: ReferenceBatch, replica: Replica, methods: Sequence[Method]) -> list[list[float]]:
        return [[divergence(method.schedule)] * len(self.samples) for method in methods]

    monkeypatch.setattr(ReferenceBatch, "divergences", of_methods)
    found = search(bundled, samples[:FEW], 20, selector="trio-plus", schedule="auto", full_depth="auto")
    assert (len(found.depths), dict(found.depths)) == (tried, pytest.approx(divergences))
    assert found.method.full_depth == 0.5
    assert "full_depth 0.5, chosen from" in str(found)
    assert found.method.build(layers).schedule.prune_points[-1] == 12
    assert found.tried < 20  # a candidate on all tokens takes longer


@pytest.mark.parametrize(
    ("count", "method", "said"),
    [(5, {}, "12 samples or more, and 5"), (18, {"encoder": "visionzip"}, "method.encoder")],
)
def test_what_cannot_be_searched_is_refused(
    bundled: Replica, samples: list[PreparedSample], count: int, method: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        search(bundled, samples[:count], **method)
