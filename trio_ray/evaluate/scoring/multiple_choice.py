"""Multiple choice: which option does an answer name?

All forms that LLaVA's llava/eval/eval_science_qa.py reads ('A', 'A. dog', 'The answer is A.') are read alike; the
others here ('(A)', 'A)', the option's own text) are those that models give besides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trio_ray.evaluate.scoring.exact_match import plain
from trio_ray.evaluate.scoring.scorer import Scorer, Truth
from trio_ray.source.options import LETTERS

_ALONE = re.compile(r"\(?([A-Za-z])\)?[.:,]?")
_IN_FRONT = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.:)])(?=\s)|([A-Z])(?=\n)")
_STATED = re.compile(r"\banswer(?:\s+is)?:?\s+\(?([A-Z])(?![A-Za-z'])", re.IGNORECASE)
_STATEMENT = re.compile(r"^the\s+(?:correct\s+)?answer\s+is:?\s+", re.IGNORECASE)


@dataclass(frozen=True)
class MultipleChoice(Scorer):
    """1 where the answer names the right option, whose letter is the truth. An answer that names none is wrong."""

    def score(self, answer: str, truth: Truth) -> float:
        return float(chosen_letter(answer, truth.options) == truth.answers[0])

    def measures(self, answers: Sequence[str], truths: Sequence[Truth]) -> dict[str, float]:
        """`unreadable`: the share of answers that name no option."""
        unread = [chosen_letter(answer, truth.options) is None for answer, truth in zip(answers, truths, strict=True)]
        return {"unreadable": sum(unread) / len(unread) if unread else 0.0}


def chosen_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, None where it names none, or several.

    In this order: a letter alone; a letter in front of text, marked as one ('B. dog', but not 'A dog') or on a line of
    its own; 'the answer is B'; the text of exactly one option. A letter beyond the last option is none.

    Args:
        answer: what the model said.
        options: the options' texts; without any, every letter counts.
    """
    answer = answer.strip()
    letters = LETTERS[: len(options)] if options else LETTERS
    if alone := _ALONE.fullmatch(answer):
        return _known(alone[1].upper(), letters)
    if front := _IN_FRONT.match(answer):
        return _known(front[1] or front[2] or front[3], letters)
    stated = {letter for letter in _STATED.findall(answer) if letter.isupper()}
    if stated:
        return _known(stated.pop(), letters) if len(stated) == 1 else None
    text = plain(_STATEMENT.sub("", answer))
    named = [letter for letter, option in zip(letters, options, strict=False) if text and plain(option) == text]
    return named[0] if len(named) == 1 else None


def _known(letter: str, letters: str) -> str | None:
    return letter if letter in letters else None
