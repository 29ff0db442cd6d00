"""Which stored prefix answers which question."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trio_ray.cache.part_tables import row_by_row
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.evaluate.question import Outcome, Question, Unanswered
from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.evaluate.scoring.scorers import ScorerName
from trio_ray.evaluate.truth import right_letter
from trio_ray.store.tables import place_columns

# What loading and batching a prefix needs of its row; the rest would only travel to the replicas and back.
_TASK_COLUMNS = ("key", "shard", "prompt", "top_ids", *place_columns("kv"))
_COLUMNS = (*_TASK_COLUMNS, "images.list.element.hash", "turns", "answer")
_IMAGE = "first_image"

_BLOCK_ROWS = 4096
_REPEATED = ("shard", "prompt", "kv_object")


@dataclass(frozen=True, slots=True)
class Task:
    """A prefix to decode: the place of its question among the answerable ones, its text, the columns that find it."""

    number: int
    question: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row of a table that is in memory: far smaller than the row itself, of which there may be millions."""

    table: pa.Table
    number: int


@dataclass(frozen=True, slots=True)
class Answerable:
    """A question, and where the row of its prefix is."""

    question: Question
    stored: StoredRow

    @property
    def image(self) -> str:
        """Hash of the prefix's first image."""
        return str(self.stored.table.column(_IMAGE)[self.stored.number].as_py())


def questions_of(cache: PrunedCache, scorer: ScorerName) -> list[Question]:
    """Every stored sample of a cache as a question; what is true, the cache knows."""
    with closing(cache.scan(["key", "shard", "prompt", "turns", "answer"])) as tables:
        return [
            Question(row["key"], row["shard"], row["key"], _asked(row), _truth(row["answer"], scorer), None)
            for row in row_by_row(tables)
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
    asked = list(questions)
    outcomes = _held_against_rows(asked, _found(asked, cache), cache, scorer)
    answerable = [outcome for outcome in outcomes if isinstance(outcome, Answerable)]
    return answerable, [outcome for outcome in outcomes if isinstance(outcome, Unanswered)]


def tasks_of(found: Sequence[Answerable]) -> list[Task]:
    """What there is to decode for each, numbered from 0 in the same order."""
    stored = [one.stored for one in found]
    rows: dict[int, dict[str, Any]] = {}
    for table, places in _by_table(stored):
        numbers = pa.array([stored[place].number for place in places])
        rows |= zip(places, table.select(_TASK_COLUMNS).take(numbers).to_pylist(), strict=True)
    return [Task(place, one.question.text, rows[place]) for place, one in enumerate(found)]


def _found(asked: list[Question | Unanswered], cache: PrunedCache) -> list[StoredRow | Unanswered]:
    """Where the row of each question is. The index, some 200 bytes a question, is gone when this returns."""
    index = _Index(cache, (question.key for question in asked if isinstance(question, Question)))
    return [question if isinstance(question, Unanswered) else index.find(question) for question in asked]


def _held_against_rows(
    asked: list[Question | Unanswered], found: list[StoredRow | Unanswered], cache: PrunedCache, scorer: ScorerName
) -> list[Answerable | Unanswered]:
    """What comes of each question, now that its row is known."""
    outcomes: list[Answerable | Unanswered | None] = [one if isinstance(one, Unanswered) else None for one in found]
    for table, numbers in _by_table(found):
        columns = {name: table.column(name).to_pylist() for name in ("turns", "answer")}
        columns["prompt"] = table.column("prompt").cast(pa.string()).to_pylist()  # faster than from a dictionary
        for number in numbers:
            question, stored = asked[number], found[number]
            assert isinstance(question, Question)
            assert isinstance(stored, StoredRow)
            row = {name: column[stored.number] for name, column in columns.items()}
            outcomes[number] = _outcome(question, stored, row, cache, scorer)
    return [outcome for outcome in outcomes if outcome is not None]


def _by_table(found: Iterable[StoredRow | Unanswered]) -> Iterator[tuple[pa.Table, list[int]]]:
    """Each table, with the places in `found` of its rows: columns are made Python's once, which is much faster."""
    places: dict[int, tuple[pa.Table, list[int]]] = {}
    for place, one in enumerate(found):
        if isinstance(one, StoredRow):
            places.setdefault(id(one.table), (one.table, []))[1].append(place)
    yield from places.values()


def _outcome(
    question: Question, stored: StoredRow, row: dict[str, Any], cache: PrunedCache, scorer: ScorerName
) -> Answerable | Unanswered:
    prompt: str = row["prompt"]
    if cache.scope != "image" and not _holds(prompt, question.text):
        detail = f"the sample {question.key!r} of {cache.uri} was asked something else: {prompt!r}"
        return _no(question, Outcome.OTHER_PROMPT, detail)
    if question.truth is None and (row["turns"] is None or _asked(row) == question.text):
        # The cache knows what is true of what its sample asked.
        question = replace(question, truth=_truth(row["answer"], scorer))
    return Answerable(question, stored)


def _holds(prompt: str, text: str) -> bool:
    """Whether a prompt holds a text, however both are spaced."""
    return text in prompt or "".join(text.split()) in "".join(prompt.split())


class _Index:
    """The cache's samples of the keys that are asked for: where each is stored, or why it is not.

    The cache is read once, table by table, so that memory grows with the questions and not with the cache.
    """

    def __init__(self, cache: PrunedCache, wanted: Iterable[str]) -> None:
        self._uri = cache.uri
        self._any_question = cache.scope == "image"
        self._taken: dict[str, set[str]] = {}
        self._shards = set(cache.commits.shards)
        # Tuples, because nearly all keys have one row, and a list takes twice the memory of a tuple of one.
        self._stored: dict[str, tuple[StoredRow, ...]] = dict.fromkeys(wanted, ())
        with closing(cache.scan(_COLUMNS)) as tables:
            for block in _in_blocks(_rows_of(table, self._stored) for table in tables):
                for number, key in enumerate(block.column("key").to_pylist()):
                    self._stored[key] += (StoredRow(block, number),)
        self._bad: dict[str, dict[str, str]] = {}
        for row in cache.quarantine_rows():
            if row["key"] in self._stored:
                self._bad.setdefault(row["key"], {})[row["shard"]] = f"{row['reason']}: {row['detail']}"

    def find(self, question: Question) -> StoredRow | Unanswered:
        if not self._any_question:
            taken = self._taken.setdefault(question.shard, set())
            if question.key in taken:
                detail = f"an earlier question of its file has the same key {question.key!r}; name another key_column"
                return _no(question, Outcome.DUPLICATE, detail)
            taken.add(question.key)
        among, bad = self._stored[question.key], self._bad.get(question.key, {})
        if len(among) == 1 and question.shard not in self._shards:
            return among[0]
        stored = [(one.table.column("shard")[one.number].as_py(), one) for one in among]
        if question.shard in self._shards:
            stored = [(shard, one) for shard, one in stored if shard == question.shard]
            bad = {shard: why for shard, why in bad.items() if shard == question.shard}
        if len(stored) > 1:
            shards = ", ".join(sorted(shard for shard, _ in stored))
            detail = f"several shards of {self._uri} have the key {question.key!r}: {shards}"
            return _no(question, Outcome.AMBIGUOUS, detail)
        if not stored and bad:
            return _no(question, Outcome.QUARANTINED, f"{self._uri} has it in quarantine: {next(iter(bad.values()))}")
        if not stored:
            return _no(question, Outcome.MISSING, f"{self._uri} has no sample with the key {question.key!r}")
        return stored[0][1]


def _rows_of(table: pa.Table, keys: Container[str]) -> pa.Table:
    """The rows of some keys, with the hash of the first image instead of all about the images."""
    numbers = [number for number, key in enumerate(table.column("key").to_pylist()) if key in keys]
    rows = table.take(pa.array(numbers, pa.int64()))
    first = pc.struct_field(pc.list_element(rows.column("images"), 0), "hash") if numbers else pa.nulls(0, pa.string())
    return rows.drop_columns("images").append_column(_IMAGE, first)


def _in_blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of one piece and not too few rows: many small ones would take more memory. Columns that
    say the same of many rows become dictionaries.
    """
    waiting: list[pa.Table] = []
    for table in tables:
        if len(table):
            waiting.append(table)
        if sum(map(len, waiting)) >= _BLOCK_ROWS:
            yield _block(waiting)
            waiting = []
    if waiting:
        yield _block(waiting)


def _block(tables: list[pa.Table]) -> pa.Table:
    block = pa.concat_tables(tables).combine_chunks()
    for name in _REPEATED:
        block = block.set_column(block.column_names.index(name), name, block.column(name).dictionary_encode())
    return block


def _no(question: Question, outcome: Outcome, detail: str) -> Unanswered:
    return Unanswered(question.question_id, question.key, outcome, detail)


@lru_cache(maxsize=4096)
def _truth(answer: str | None, scorer: ScorerName) -> Truth | None:
    """A true answer that came without its question's record, so without options. Questions share equal ones."""
    if answer is None:
        return None
    if scorer != "multiple_choice":
        return Truth((answer,))
    letter = right_letter(answer, (), "auto")
    return None if letter is None else Truth((letter,))
