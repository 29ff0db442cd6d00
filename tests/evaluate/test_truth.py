"""What a record says is right, where there are several ways to say it."""

from __future__ import annotations

from typing import Any

import pytest

from trio_ray.config import SourceConfig
from trio_ray.evaluate.config import QuestionsConfig
from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.evaluate.truth import options_of, right_letter, truth_of

ANIMALS = ("dog", "cat", "owl")


@pytest.mark.parametrize(
    ("value", "options", "answer_as", "letter"),
    [
        (0, ANIMALS, "auto", "A"),
        (2, ANIMALS, "auto", "C"),
        (3, ANIMALS, "auto", None),
        ("B", ANIMALS, "auto", "B"),
        ("D", ANIMALS, "auto", None),
        ("cat", ANIMALS, "auto", "B"),
        ("Cat.", ANIMALS, "auto", "B"),
        ("1", ANIMALS, "auto", "B"),
        ("1", ("2", "3", "1"), "auto", "C"),  # a digit that is an option is that option
        ("1", ("2", "3", "1"), "index", "B"),  # AI2D's answers are indices written as text
        (1, ("2", "3", "1"), "text", "C"),
        ("B", ("A", "C", "B"), "text", "C"),
        ("B", ("A", "C", "B"), "auto", "B"),
        ("cat", ("cat", "cat"), "auto", None),
        ("B", (), "auto", "B"),
        ("1", (), "auto", "B"),
        ("-1", ANIMALS, "auto", None),
        ("²", ANIMALS, "auto", None),
        ("", ANIMALS, "auto", None),
        (None, ANIMALS, "auto", None),
    ],
)
def test_the_right_option_is_a_letter_an_index_or_a_text(
    value: object, options: tuple[str, ...], answer_as: str, letter: str | None
) -> None:
    assert right_letter(value, options, answer_as) == letter


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"options": ["x", "y"]}, ("x", "y")),
        ({"choices": [1, 2]}, ("1", "2")),
        ({"options": [], "A": "x", "B": "y", "C": None}, ("x", "y")),
        ({"A": "x", "B": "NaN", "C": "z"}, ("x",)),
        ({"A": float("nan")}, ()),
        ({}, ()),
    ],
)
def test_options_come_as_a_list_or_as_lettered_fields(record: dict[str, Any], options: tuple[str, ...]) -> None:
    assert options_of(record) == options


def test_annotators_matter_to_vqa_and_their_agreed_answer_to_a_file_that_has_one_alone() -> None:
    record = {"answers": ["red", "red", "blue"], "multiple_choice_answer": "red"}
    source, questions = SourceConfig(), QuestionsConfig()
    assert truth_of(record, "red", source, questions, "vqa") == Truth(("red", "red", "blue"))
    assert truth_of({"answer": "red"}, "red", source, questions, "vqa") == Truth(("red",))
    named = SourceConfig(answer_column="multiple_choice_answer")
    assert truth_of(record, "red", named, questions, "vqa") == Truth(("red",))


def test_a_record_that_does_not_say_has_no_truth() -> None:
    source, questions = SourceConfig(), QuestionsConfig()
    assert truth_of({}, None, source, questions, "exact") is None
    assert truth_of({"options": ["a", "b"], "answer": "?"}, "?", source, questions, "multiple_choice") is None
