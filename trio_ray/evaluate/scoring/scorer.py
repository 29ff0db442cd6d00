"""One interface for all ways to score an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Truth:
    """What a question's right answer is.

    Attributes:
        answers: the true answer; several where annotators gave one each, or where any of them is right.
        options: the texts of a multiple-choice question's options, in the order of their letters.
    """

    answers: tuple[str, ...]
    options: tuple[str, ...] = ()


class Scorer(ABC):
    """Scores answers one by one; a set of questions may have further measures."""

    @abstractmethod
    def score(self, answer: str, truth: Truth) -> float:
        """How right an answer is, from 0 to 1. The mean over questions is the accuracy."""

    def measures(self, answers: Sequence[str], truths: Sequence[Truth]) -> dict[str, float]:
        """What there is to say of a set of answers beside their accuracy, by name; nothing by default."""
        return {}
