"""Accuracy is what one question after the other gives; its interval covers the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tests.model.corpus import prepare
from trio_ray.config import MethodConfig
from trio_ray.errors import ConfigError
from trio_ray.evaluate.scoring.bootstrap import interval
from trio_ray.lab.accuracy.accuracy import Result, Setting, measure_accuracy, prepared_batches
from trio_ray.lab.accuracy.methods import RETENTIONS, method_config, methods
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.model.replica import Replica

# Where a layer may hold a fraction less or more than wanted: each prune point's count is a whole number.
ROUNDING = 1.0


def test_every_method_answers_as_it_does_one_question_at_a_time(
    bundled: Replica, questions: list[HeldOutQuestion]
) -> None:
    """Answers, what counts as right, and the image tokens that a layer holds, all counted anew from the prefixes."""
    settings = [Setting(name, 0.222, method_config(name, 0.222)) for name in methods()]
    settings.append(Setting("all tokens", 1.0, method_config("trio", 1.0)))
    told: list[int] = []
    results = measure_accuracy(bundled, questions, settings, 4, told.append)
    assert told == [4, 8, 10]
    assert [result.setting for result in results] == settings
    samples = prepare(bundled, [question.sample for question in questions])
    for setting, result in zip(settings, results, strict=True):
        answers, held = [], []
        for sample in samples:
            (prefix,) = bundled.prefill([sample], setting.config.build(bundled.decoder.depth)).prefixes
            answers += bundled.generate([prefix], 16)
            text = sample.rows - sample.image_tokens
            rows = sum(segment.layers * (segment.rows - text) for segment in prefix.segments)
            held.append(rows / bundled.decoder.depth)
        right = [answer == question.answer for answer, question in zip(answers, questions, strict=True)]
        assert result.answers == answers
        assert result.right.tolist() == right
        assert result.accuracy == pytest.approx(sum(right) / len(right))
        assert result.tokens == pytest.approx(np.mean(held))
        wanted = setting.retention * np.mean([sample.image_tokens for sample in samples])
        assert result.tokens == pytest.approx(wanted, abs=ROUNDING)
    assert 0 < sum(result.right.sum() for result in results) < len(questions) * len(results)


def test_questions_come_in_order_in_batches_of_the_wanted_size(
    bundled: Replica, questions: list[HeldOutQuestion]
) -> None:
    batches = list(prepared_batches(bundled, questions, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [sample.key for batch in batches for sample in batch] == [question.sample.key for question in questions]


def test_a_question_for_which_a_fixed_budget_has_no_room_is_refused(
    bundled: Replica, questions: list[HeldOutQuestion]
) -> None:
    """As the job does it: all that such a prune leaves is the one token that always stays."""
    tight = MethodConfig(tokens=10, prune_points=(7,), weights=(1.0,))
    with pytest.raises(ConfigError, match=r"cannot be asked: image_too_large: .* method\.tokens = 10 allows"):
        measure_accuracy(bundled, questions[:2], [Setting("tight", 0.1, tight)], 2)


@pytest.mark.parametrize("retention", [retention for retention in RETENTIONS if retention < 1])
@pytest.mark.parametrize("name", methods())
def test_every_method_meets_every_retention_of_the_tables(bundled: Replica, name: str, retention: float) -> None:
    schedule = method_config(name, retention).build(bundled.decoder.depth).schedule
    for tokens in (136, 200, 336):
        assert schedule.mean_tokens(tokens) == pytest.approx(retention * tokens, abs=ROUNDING)


def test_an_unknown_method_has_no_settings() -> None:
    with pytest.raises(ConfigError, match="trio-plus"):
        method_config("the best", 0.1)


# --- the interval ---


def clustered(seed: int, scenes: int = 60, per_scene: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Answers about scenes of which some are hard and some are easy; on average 0.6 are right."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.6, 0.4, scenes)
    number = np.repeat(np.arange(scenes), per_scene)
    return rng.random(len(number)) < chance[number], number


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 300 samples of 60 scenes about 95 in 100; taking each question for itself would be far too sure."""
    covered, naive = 0, 0
    for seed in range(300):
        right, scenes = clustered(seed)
        low, high = interval(right, scenes, resamples=400)
        assert low <= right.mean() <= high
        covered += low <= 0.6 <= high
        low, high = interval(right, np.arange(len(right)), resamples=400)
        naive += low <= 0.6 <= high
    assert 0.91 <= covered / 300 <= 0.98
    assert naive / 300 < 0.85


def test_whole_scenes_are_drawn() -> None:
    """Four equal answers about a scene say no more than one."""
    right, _ = clustered(1, scenes=50, per_scene=1)
    once = interval(right, np.arange(50))
    assert interval(np.repeat(right, 4), np.repeat(np.arange(50), 4)) == once
    low, high = interval(np.repeat(right, 4), np.arange(200))
    assert high - low < 0.7 * (once[1] - once[0])


def test_a_scene_counts_by_its_questions_in_whatever_order() -> None:
    right, scenes = clustered(2)
    right, scenes = right[7:], scenes[7:]  # the first scenes have fewer questions
    shuffled = np.random.default_rng(0).permutation(len(right))
    assert interval(right[shuffled], scenes[shuffled]) == interval(right, scenes)
    assert interval(np.ones(30, bool), scenes[:30]) == (1.0, 1.0)


def test_a_higher_level_is_wider_and_the_seed_decides() -> None:
    right, scenes = clustered(3)
    low, high = interval(right, scenes)
    wide_low, wide_high = interval(right, scenes, level=0.99)
    assert wide_low < low < high < wide_high
    assert interval(right, scenes) == (low, high)
    assert interval(right, scenes, seed=1) != (low, high)


def test_accuracy_is_the_share_of_right_answers() -> None:
    setting = Setting("trio", 0.1, method_config("trio", 0.1))
    result = Result(setting, ["a", "b", "c", "d"], np.array([1.0, 0.0, 1.0, 1.0]), 9.0, 90.0, 4.0, 2.0, 320)
    assert result.accuracy == 0.75
    assert result.rate == 2.0
