"""The scorers by name."""

from __future__ import annotations

from typing import Literal

from trio_ray.evaluate.scoring.exact_match import ExactMatch
from trio_ray.evaluate.scoring.multiple_choice import MultipleChoice
from trio_ray.evaluate.scoring.pope import Pope
from trio_ray.evaluate.scoring.scorer import Scorer
from trio_ray.evaluate.scoring.vqa import VqaAccuracy

ScorerName = Literal["exact", "vqa", "pope", "multiple_choice"]


def scorer_named(name: ScorerName) -> Scorer:
    """The scorer of a configuration's `scorer`."""
    scorers: dict[ScorerName, Scorer] = {
        "exact": ExactMatch(),
        "vqa": VqaAccuracy(),
        "pope": Pope(),
        "multiple_choice": MultipleChoice(),
    }
    return scorers[name]
