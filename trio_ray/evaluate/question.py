"""A question of an evaluation, and why one may stay without an answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trio_ray.errors import TrioRayError
from trio_ray.evaluate.scoring.scorer import Truth


class Outcome(StrEnum):
    """Why a question has no answer. The value is what `unanswered.jsonl` and the metrics say."""

    UNREADABLE = "unreadable"
    DUPLICATE = "duplicate"
    MISSING = "missing"
    QUARANTINED = "quarantined"
    AMBIGUOUS = "ambiguous"
    OTHER_PROMPT = "other_prompt"
    LOST = "lost"
    DAMAGED = "damaged"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Question:
    """One question to be answered from a cache.

    Attributes:
        key: what the cache knows it by, unique within its shard.
        shard: name that the shard has, or would have, in a cache.
        question_id: what its answer is filed under.
        text: the question, without image markers.
        truth: the right answer, if the file has it.
        category: what it is counted with, if anything.
    """

    key: str
    shard: str
    question_id: int | str
    text: str
    truth: Truth | None
    category: str | None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question without an answer: which, why, and what a person should know about it."""

    question_id: int | str
    key: str
    outcome: Outcome
    detail: str


class NoAnswer(TrioRayError):
    """A question has no sound prefix and the job was to end then."""

    exit_code = 4

    def __init__(self, first: Unanswered, more: int) -> None:
        others = f", and {more} more like it" if more else ""
        super().__init__(
            f"question {first.question_id!r} ({first.outcome}): {first.detail}{others}; mend the cache or the question "
            "file, or leave such questions out with on_missing: skip"
        )
        self.first = first
