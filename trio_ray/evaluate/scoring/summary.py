"""Scores of a whole question set: overall, and by category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trio_ray.evaluate.scoring.bootstrap import interval
from trio_ray.evaluate.scoring.scorer import Scorer, Truth


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer to a question whose truth is known. Questions of one `group` (one image) hang together."""

    answer: str
    truth: Truth
    score: float
    category: str | None
    group: str


def summarise(scorer: Scorer, answers: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """`overall`, and `by_category` where there are categories.

    Each has the number of `questions` and, if that is not 0, `accuracy` from 0 to 1, its 95 % bootstrap `interval`
    (whole groups are drawn), and the scorer's own measures.
    """
    categories = sorted({answer.category for answer in answers if answer.category is not None})
    members = {name: [answer for answer in answers if answer.category == name] for name in categories}
    by_category = {name: _measured(scorer, chosen) for name, chosen in members.items()}
    return {"overall": _measured(scorer, answers)} | ({"by_category": by_category} if by_category else {})


def _measured(scorer: Scorer, answers: Sequence[ScoredAnswer]) -> dict[str, Any]:
    if not answers:
        return {"questions": 0}
    scores = np.array([answer.score for answer in answers])
    _, groups = np.unique([answer.group for answer in answers], return_inverse=True)
    measures = scorer.measures([answer.answer for answer in answers], [answer.truth for answer in answers])
    return {
        "questions": len(answers),
        "accuracy": float(scores.mean()),
        "interval": list(interval(scores, groups.tolist())),
        **measures,
    }
