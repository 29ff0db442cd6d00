"""VQA accuracy against cases worked out by hand from visualqa.org/evaluation.html and the official script's rules."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.evaluate.scoring.vqa import VqaAccuracy
from trio_ray.evaluate.scoring.vqa_text import CONTRACTIONS, normalised

WORDS = st.sampled_from(["yes", "no", "2", "two", "red"])


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("The Dog", "dog"),
        ("a man on an elephant", "man on elephant"),
        ("theatre", "theatre"),
        ("none", "0"),
        ("Two dogs", "2 dogs"),
        ("eleven", "eleven"),
        ("twenty-one", "twenty 1"),
        ("dont know", "don't know"),
        ("DONT", "don't"),
        ("Im", "im"),  # the table has capitals here, which nothing meets after lower-casing
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("1,000", "1000"),
        ("100,978 people", "100978 people"),
        ("1,000-2,000", "10002000"),  # a comma between digits closes every sign up
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("red-blue", "red blue"),
        ("red - blue-green", "red bluegreen"),  # one dash beside a space takes the space from the other
        ("yes!", "yes"),
        ("(left)", "left"),
        ("2.5", "2.5"),
        ("2.", "2"),
        (".5", ".5"),
        ("U.S.A.", "usa"),
        ("a.m.", "am"),
        ("yes.\nno\tmaybe", "yes no maybe"),
        ("  ", ""),
        ("", ""),
        ("the", ""),
        ("?", ""),
        ("zwölf", "zwölf"),
    ],
)
def test_answers_are_made_alike_as_the_official_rules_say(answer: str, same: str) -> None:
    assert normalised(answer) == same


def test_contractions_lack_one_apostrophe_and_most_used_ones_are_there() -> None:
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["isnt"] == "isn't"
    assert CONTRACTIONS["oclock"] == "o'clock"
    assert not {"lets", "shes", "ill", "were", "its"} & CONTRACTIONS.keys()
    assert CONTRACTIONS["somebody'd"] == "somebodyd"  # the official table has this one the wrong way round


@pytest.mark.parametrize(
    ("agree", "score"),
    [
        (0, Fraction(0)),
        (1, Fraction(9 * 1, 30)),  # nine of ten leave-one-out sets have the one who agrees
        (2, Fraction(8 * 2 + 2 * 1, 30)),
        (3, Fraction(7 * 3 + 3 * 2, 30)),
        (4, Fraction(1)),
        (10, Fraction(1)),
    ],
)
def test_three_of_nine_annotators_are_enough_on_average_over_all_nines(agree: int, score: Fraction) -> None:
    truth = Truth(("red",) * agree + ("blue",) * (10 - agree))
    assert VqaAccuracy().score("Red.", truth) == pytest.approx(float(score))


def test_annotators_who_are_split_in_halves_give_either_answer_its_due() -> None:
    truth = Truth(("yes", "no") * 5)
    assert [VqaAccuracy().score(answer, truth) for answer in ("yes", "no", "maybe", "")] == [1, 1, 0, 0]
    tie = Truth(("yes", "no", "red", "blue", "2") * 2)
    assert VqaAccuracy().score("two", tie) == pytest.approx(0.6)


def test_both_sides_are_normalised_also_where_all_annotators_agree() -> None:
    assert VqaAccuracy().score("Yes", Truth(("yes",) * 10)) == 1
    assert VqaAccuracy().score("2 dogs", Truth(("two dogs",) * 9 + ("Dogs",))) == 1


@pytest.mark.parametrize(("answer", "score"), [("the Red", 1), ("blue", 0), ("", 0)])
def test_one_true_answer_is_right_or_wrong(answer: str, score: float) -> None:
    assert VqaAccuracy().score(answer, Truth(("red",))) == score


def test_an_empty_answer_is_right_where_annotators_said_nothing_that_counts() -> None:
    assert VqaAccuracy().score("", Truth(("the", "a", "", "?"))) == 1


@given(WORDS, st.lists(WORDS, min_size=2, max_size=12))
def test_the_score_is_the_mean_over_all_sets_without_one_annotator(answer: str, annotators: list[str]) -> None:
    """The page's own formula, set by set."""
    same = [normalised(word) == normalised(answer) for word in annotators]
    sets = list(combinations(same, len(same) - 1))
    expected = sum(min(Fraction(sum(chosen), 3), Fraction(1)) for chosen in sets) / len(sets)
    assert VqaAccuracy().score(answer, Truth(tuple(annotators))) == pytest.approx(float(expected))
