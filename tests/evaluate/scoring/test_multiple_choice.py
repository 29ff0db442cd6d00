"""Multiple choice: which option an answer names, in all the ways that models write it."""

from __future__ import annotations

import pytest

from trio_ray.evaluate.scoring.multiple_choice import MultipleChoice, chosen_letter
from trio_ray.evaluate.scoring.scorer import Truth

ANIMALS = ("dog", "cat", "a horse", "dog and cat")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B.\n", "B"),
        ("(B)", "B"),
        ("B)", "B"),
        ("B:", "B"),
        ("B. cat", "B"),
        ("B) cat", "B"),
        ("(B) cat", "B"),
        ("B: a dog", "B"),
        ("B\nbecause cats purr", "B"),
        ("B.\ncat", "B"),
        ("The answer\nis B", "B"),
        ("The answer is B.", "B"),
        ("The answer is B", "B"),
        ("the answer is (B).", "B"),
        ("The correct answer is: B because cats purr", "B"),
        ("Answer: B", "B"),
        ("It purrs, so the answer is B. cat", "B"),
        ("The answer is B. Yes, the answer is B.", "B"),
        ("cat", "B"),
        ("Cat.", "B"),
        ("The answer is cat.", "B"),
        ("A horse", "C"),
        ("a horse", "C"),
        ("dog and cat", "D"),
        ("E", None),
        ("E. none of them", None),
        ("The answer is E.", None),
        ("The answer is A. No, the answer is B.", None),
        ("A dog", None),  # an article, not a letter
        ("a dog and a cat", None),
        ("bird", None),
        ("", None),
        (".", None),
        ("Because", None),
        ("The answer is a", None),
    ],
)
def test_an_answer_names_an_option_by_letter_or_by_its_text(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, ANIMALS) == letter


def test_a_text_that_two_options_share_names_neither() -> None:
    assert chosen_letter("dog", ("dog", "Dog.", "cat")) is None


@pytest.mark.parametrize(("answer", "letter"), [("F", "F"), ("(z)", "Z"), ("The answer is Q.", "Q"), ("dog", None)])
def test_without_options_every_letter_counts(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, ()) == letter


def test_an_unreadable_answer_is_wrong_and_counted() -> None:
    truth = Truth(("B",), ANIMALS)
    answers = ["B", "A", "who knows", "cat"]
    assert [MultipleChoice().score(answer, truth) for answer in answers] == [1, 0, 0, 1]
    assert MultipleChoice().measures(answers, [truth] * 4) == {"unreadable": 0.25}
    assert MultipleChoice().measures([], []) == {"unreadable": 0.0}
