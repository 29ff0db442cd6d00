"""The yardstick itself: the bundled model's full accuracy, and the order of the selectors at 11.1 %."""

from __future__ import annotations

import numpy as np
import pytest

from trio_ray.lab.accuracy.accuracy import Result, Setting, measure_accuracy
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import held_out_questions
from trio_ray.model.replica import Replica

pytestmark = pytest.mark.slow

QUESTIONS, RETENTION = 120, 0.111
NAMES = ("trio", "trio-plus", "random", "uniform", "attention")


@pytest.fixture(scope="module")
def results(bundled: Replica) -> dict[str, Result]:
    """Every selector's answers to the same questions, and those from all tokens."""
    questions = held_out_questions(QUESTIONS, per_scene=2)
    settings = [Setting(name, RETENTION, method_config(name, RETENTION)) for name in NAMES]
    settings.append(Setting("all tokens", 1.0, method_config("trio", 1.0)))
    return {result.setting.name: result for result in measure_accuracy(bundled, questions, settings, 25)}


def margin(better: Result, worse: Result) -> tuple[float, float]:
    """Mean difference of two selectors' marks on the same questions, and its standard error with whole scenes as the
    unit.
    """
    by_scene = (better.right.astype(float) - worse.right).reshape(-1, 2).mean(1)
    return float(by_scene.mean()), float(by_scene.std(ddof=1) / np.sqrt(len(by_scene)))


def test_all_tokens_answer_nearly_everything(results: dict[str, Result]) -> None:
    assert results["all tokens"].accuracy >= 0.97


def test_all_selectors_hold_the_same_number_of_tokens(results: dict[str, Result]) -> None:
    held = {name: results[name].tokens for name in NAMES}
    assert max(held.values()) - min(held.values()) < 1, held
    assert held["trio"] == pytest.approx(RETENTION * results["all tokens"].tokens, abs=0.5)


@pytest.mark.parametrize("other", ["random", "uniform", "attention"])
def test_trio_is_above_what_does_not_ask_the_model(results: dict[str, Result], other: str) -> None:
    """By more than two standard errors on paired answers."""
    mean, error = margin(results["trio"], results[other])
    assert mean > 2 * error > 0, (results["trio"].accuracy, results[other].accuracy)


def test_trio_plus_is_above_trio(results: dict[str, Result]) -> None:
    """By more than two standard errors on paired answers."""
    mean, error = margin(results["trio-plus"], results["trio"])
    assert mean > 2 * error > 0, (results["trio-plus"].accuracy, results["trio"].accuracy)
