"""Exact match: the answer is the true one, but for case, outer and repeated white space, and a final period."""

from __future__ import annotations

from dataclasses import dataclass

from trio_ray.evaluate.scoring.scorer import Scorer, Truth


@dataclass(frozen=True)
class ExactMatch(Scorer):
    """1 where the answer equals one of the true answers, else 0. An empty answer equals none."""

    def score(self, answer: str, truth: Truth) -> float:
        given = plain(answer)
        return float(bool(given) and given in {plain(true) for true in truth.answers})


def plain(text: str) -> str:
    """The text as it is compared."""
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()
