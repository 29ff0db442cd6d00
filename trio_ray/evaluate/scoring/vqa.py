"""VQA accuracy over several annotators (visualqa.org/evaluation.html)."""

from __future__ import annotations

from dataclasses import dataclass

from trio_ray.evaluate.scoring.scorer import Scorer, Truth
from trio_ray.evaluate.scoring.vqa_text import normalised

ENOUGH = 3
"""Annotators who must agree with an answer for it to count in full."""


@dataclass(frozen=True)
class VqaAccuracy(Scorer):
    """min(annotators who agree / 3, 1), averaged over all ways to leave one annotator out.

    Both sides are normalised. The page says so without exception; the official script skips it where all annotators
    wrote the same, so that 'Yes' would get nothing from ten times 'yes'.

    A corpus with one true answer instead of annotators is scored 1 or 0.
    """

    def score(self, answer: str, truth: Truth) -> float:
        given = normalised(answer)
        agree = [normalised(true) == given for true in truth.answers]
        if len(agree) == 1:
            return float(agree[0])
        total = sum(agree)
        return sum(min((total - one) / ENOUGH, 1.0) for one in agree) / len(agree)
