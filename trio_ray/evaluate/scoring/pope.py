"""POPE: yes or no about objects, and how far a model leans towards yes (arXiv 2305.10355).

Read and counted as LLaVA's llava/eval/eval_pope.py does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trio_ray.evaluate.scoring.scorer import Scorer, Truth

NO_WORDS = frozenset({"No", "no", "not"})


@dataclass(frozen=True)
class Pope(Scorer):
    """1 where yes or no is right. Further: precision, recall and F1 of yes, and the share of answers that are yes.

    A measure without a case to count (precision where nothing was answered with yes) is 0; the script divides by zero.
    """

    def score(self, answer: str, truth: Truth) -> float:
        return float(says_yes(answer) == _is_yes(truth))

    def measures(self, answers: Sequence[str], truths: Sequence[Truth]) -> dict[str, float]:
        """`precision`, `recall`, `f1` and `yes_rate`, each from 0 to 1."""
        cases = Counter((says_yes(answer), _is_yes(truth)) for answer, truth in zip(answers, truths, strict=True))
        hits, false_alarms, misses = cases[True, True], cases[True, False], cases[False, True]
        precision, recall = _share(hits, hits + false_alarms), _share(hits, hits + misses)
        return {
            "precision": precision,
            "recall": recall,
            "f1": _share(2 * precision * recall, precision + recall),
            "yes_rate": _share(hits + false_alarms, len(answers)),
        }


def says_yes(answer: str) -> bool:
    """Whether the answer's first sentence has none of the words 'No', 'no' and 'not': so an empty answer is a yes."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return NO_WORDS.isdisjoint(words)


def _is_yes(truth: Truth) -> bool:
    return truth.answers[0].strip().lower() != "no"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
