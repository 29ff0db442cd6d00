"""Scores of a set: overall and by category, with intervals that know which questions hang together."""

from __future__ import annotations

import pytest

from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.evaluate.scoring.scorers import scorer_named
from trio_ray.evaluate.scoring.summary import ScoredAnswer, summarise


def answers(*scores: float, category: str | None = None, group: str = "") -> list[ScoredAnswer]:
    """Answers of given scores; each about an image of its own unless a group is named."""
    return [
        ScoredAnswer("yes", Truth(("yes" if score else "no",)), score, category, group or f"{category}{number}")
        for number, score in enumerate(scores)
    ]


def test_categories_are_measured_apart_and_together() -> None:
    found = summarise(scorer_named("pope"), [*answers(1, 1, 0, category="random"), *answers(0, category="popular")])
    assert found["overall"]["questions"] == 4
    assert found["overall"]["accuracy"] == 0.5
    assert found["overall"]["precision"] == 0.5
    assert list(found["by_category"]) == ["popular", "random"]
    assert found["by_category"]["random"]["accuracy"] == pytest.approx(2 / 3)
    assert found["by_category"]["popular"]["f1"] == 0


def test_partial_scores_count_in_part() -> None:
    found = summarise(scorer_named("vqa"), answers(0.3, 0.6, 0.9))
    assert found["overall"]["accuracy"] == pytest.approx(0.6)
    low, high = found["overall"]["interval"]
    assert 0.3 <= low < 0.6 < high <= 0.9


def test_questions_about_one_image_make_the_interval_wider() -> None:
    apart = summarise(scorer_named("exact"), answers(*[1, 0] * 20))
    together = summarise(
        scorer_named("exact"), [one for n in range(10) for one in answers(*[n % 2] * 4, group=f"image {n}")]
    )
    spread = [found["overall"]["interval"][1] - found["overall"]["interval"][0] for found in (apart, together)]
    assert spread[1] > 1.5 * spread[0]


def test_without_categories_or_answers_there_is_nothing_to_say_of_them() -> None:
    assert "by_category" not in summarise(scorer_named("exact"), answers(1))
    assert summarise(scorer_named("exact"), []) == {"overall": {"questions": 0}}
