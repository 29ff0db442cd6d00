"""Which stored prefix answers which question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.evaluate.question import Outcome, Question, Unanswered
from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.evaluate.scoring.scorers import ScorerName
from trio_ray.evaluate.truth import right_letter
from trio_ray.store.tables import place_columns

# What loading and batching a prefix needs of its row; the rest would only travel to the replicas and back.
_TASK_COLUMNS = ("key", "shard", "prompt", "top_ids", *place_columns("kv"))
_COLUMNS = (*_TASK_COLUMNS, "images", "turns", "answer")


@dataclass(frozen=True, slots=True)
class Task:
    """A prefix to decode: the place of its question among the answerable ones, its text, the columns that find it."""

    number: int
    question: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answerable:
    """A question with its prefix's row (the columns of a `Task` alone) and the hash of its first image."""

    question: Question
    row: dict[str, Any]
    image: str


def questions_of(cache: PrunedCache, scorer: ScorerName) -> list[Question]:
    """Every stored sample of a cache as a question; what is true, the cache knows."""
    return [
        Question(row["key"], row["shard"], row["key"], _asked(row), _truth(row["answer"], scorer), None)
        for row in cache.read_table(["key", "shard", "prompt", "turns", "answer"]).to_pylist()
    ]


def _asked(row: dict[str, Any]) -> str:
    """With scope image the sample's own question is beside the prompt, which ends with the image."""
    return row["prompt"] if row["turns"] is None else row["turns"][-1]["text"]


def join(
    questions: Iterable[Question | Unanswered], cache: PrunedCache, scorer: ScorerName
) -> tuple[list[Answerable], list[Unanswered]]:
    """Find each question's prefix. The order stays.

    A key counts within its shard: where the cache was made from the question's own file, no other shard is looked at;
    else the key must be the only one of its name in the cache. The prompt must hold the question's text, so that keys
    that are mere row numbers cannot pair a question with another one's prefix. With scope image any number of
    questions may have one key, and ask whatever they like.

    Args:
        questions: as read.
        cache: where the prefixes are.
        scorer: how a true answer that only the cache has is to be understood.
    """
    index = _Index(cache)
    found: list[Answerable] = []
    unanswered: list[Unanswered] = []
    for question in questions:
        if isinstance(question, Unanswered):
            unanswered.append(question)
            continue
        row = index.find(question)
        if isinstance(row, Unanswered):
            unanswered.append(row)
        else:
            found.append(_answerable(question, row, scorer))
    return found, unanswered


class _Index:
    """The cache's keys: where each is stored, or why it is not."""

    def __init__(self, cache: PrunedCache) -> None:
        self._uri = cache.uri
        self._any_question = cache.scope == "image"
        self._taken: set[tuple[str, str]] = set()
        self._table = cache.read_table(_COLUMNS)
        self._shards = {commit.shard.name for commit in cache.commits}
        self._stored: dict[str, dict[str, int]] = {}
        keys, shards = (self._table.column(name).to_pylist() for name in ("key", "shard"))
        for place, (key, shard) in enumerate(zip(keys, shards, strict=True)):
            self._stored.setdefault(key, {})[shard] = place
        self._bad: dict[str, dict[str, str]] = {}
        for row in cache.quarantine.select(["key", "shard", "reason", "detail"]).to_pylist():
            self._bad.setdefault(row["key"], {})[row["shard"]] = f"{row['reason']}: {row['detail']}"

    def find(self, question: Question) -> dict[str, Any] | Unanswered:
        place = (question.shard, question.key)
        if place in self._taken and not self._any_question:
            detail = f"an earlier question of its file has the same key {question.key!r}; name another key_column"
            return _no(question, Outcome.DUPLICATE, detail)
        self._taken.add(place)
        stored, bad = self._stored.get(question.key, {}), self._bad.get(question.key, {})
        if question.shard in self._shards:
            stored = {shard: place for shard, place in stored.items() if shard == question.shard}
            bad = {shard: why for shard, why in bad.items() if shard == question.shard}
        if len(stored) > 1:
            detail = f"several shards of {self._uri} have the key {question.key!r}: {', '.join(sorted(stored))}"
            return _no(question, Outcome.AMBIGUOUS, detail)
        if not stored and bad:
            return _no(question, Outcome.QUARANTINED, f"{self._uri} has it in quarantine: {next(iter(bad.values()))}")
        if not stored:
            return _no(question, Outcome.MISSING, f"{self._uri} has no sample with the key {question.key!r}")
        row: dict[str, Any] = self._table.slice(next(iter(stored.values())), 1).to_pylist()[0]
        if not self._any_question and "".join(question.text.split()) not in "".join(row["prompt"].split()):
            detail = f"the sample {question.key!r} of {self._uri} was asked something else: {row['prompt']!r}"
            return _no(question, Outcome.OTHER_PROMPT, detail)
        return row


def _no(question: Question, outcome: Outcome, detail: str) -> Unanswered:
    return Unanswered(question.question_id, question.key, outcome, detail)


def _answerable(question: Question, row: dict[str, Any], scorer: ScorerName) -> Answerable:
    own = row["turns"] is None or _asked(row) == question.text
    if question.truth is None and own:  # the cache knows what is true of what its sample asked
        question = replace(question, truth=_truth(row["answer"], scorer))
    return Answerable(question, {name: row[name] for name in _TASK_COLUMNS}, row["images"][0]["hash"])


def _truth(answer: str | None, scorer: ScorerName) -> Truth | None:
    """A true answer that came without its question's record, so without options."""
    if answer is None:
        return None
    if scorer != "multiple_choice":
        return Truth((answer,))
    letter = right_letter(answer, (), "auto")
    return None if letter is None else Truth((letter,))
