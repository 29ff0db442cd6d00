"""Exact match forgives writing, not words."""

from __future__ import annotations

import pytest

from trio_ray.evaluate.scoring.exact_match import ExactMatch
from trio_ray.evaluate.scoring.scorer import Truth


@pytest.mark.parametrize(
    ("answer", "true", "score"),
    [
        ("red", ("red",), 1),
        (" Red.\n", ("red",), 1),
        ("top  left", ("Top left",), 1),
        ("red", ("blue", "red"), 1),
        ("straße", ("STRASSE",), 1),
        ("a red one", ("red",), 0),
        ("", ("red",), 0),
        ("", ("",), 0),
        (".", ("",), 0),
        ("3.5", ("35",), 0),
    ],
)
def test_an_answer_is_right_but_for_case_space_and_a_final_period(
    answer: str, true: tuple[str, ...], score: float
) -> None:
    assert ExactMatch().score(answer, Truth(true)) == score
