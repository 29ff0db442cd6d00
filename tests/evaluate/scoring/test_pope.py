"""POPE: how an answer is read as yes or no, and what is counted of it."""

from __future__ import annotations

import pytest

from trio_ray.evaluate.scoring.pope import Pope, says_yes
from trio_ray.evaluate.scoring.scorer import Truth

YES, NO = Truth(("yes",)), Truth(("no",))


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("No, there is none.", False),
        ("There is not a dog in the picture.", False),
        ("Yes. There is no cat, though.", True),  # the first sentence alone
        ("I see a dog. No cat.", True),
        ("NO", True),  # the script knows three spellings
        ("Nothing here", True),
        ("There isn't one", True),
        ("no.", False),
        ("", True),
        ("yes\nno", True),  # words are parted by spaces alone
    ],
)
def test_an_answer_is_no_by_a_word_of_its_first_sentence(answer: str, yes: bool) -> None:
    assert says_yes(answer) is yes


def test_the_measures_are_those_of_the_confusion_matrix() -> None:
    """Three hits, one false alarm, two misses, four right rejections."""
    answers = ["Yes"] * 4 + ["No"] * 6
    truths = [YES] * 3 + [NO] + [YES] * 2 + [NO] * 4
    scorer = Pope()
    assert sum(scorer.score(*pair) for pair in zip(answers, truths, strict=True)) == 7
    measures = scorer.measures(answers, truths)
    assert measures == {
        "precision": pytest.approx(3 / 4),
        "recall": pytest.approx(3 / 5),
        "f1": pytest.approx(2 * 3 / (2 * 3 + 1 + 2)),
        "yes_rate": pytest.approx(4 / 10),
    }


@pytest.mark.parametrize(
    ("answers", "truths", "f1", "yes_rate"),
    [(["no", "no"], [YES, NO], 0, 0), (["yes"], [NO], 0, 1), (["yes"], [YES], 1, 1), ([], [], 0, 0)],
)
def test_a_measure_without_cases_is_zero(answers: list[str], truths: list[Truth], f1: float, yes_rate: float) -> None:
    measures = Pope().measures(answers, truths)
    assert (measures["f1"], measures["yes_rate"]) == (f1, yes_rate)


@pytest.mark.parametrize("label", ["No", " no ", "NO"])
def test_the_label_may_be_written_in_any_case(label: str) -> None:
    assert Pope().score("No, there is not.", Truth((label,))) == 1
