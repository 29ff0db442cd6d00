"""Stored prefixes to answers, on one model. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from trio_ray.cache.fetched import Row
from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.cache.unreadable import PrefixMissing, UnreadablePrefix
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.join import Task
from trio_ray.evaluate.question import Outcome
from trio_ray.model.decode.choice import Sampling
from trio_ray.model.decode.engine import Answer, Engine, Request
from trio_ray.model.decode.targets import PoolTargets
from trio_ray.model.prompt import PromptError
from trio_ray.model.replica import Replica

Place = tuple[str, int]
"""Where a prefix is stored: its object, and the offset in it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a task has no answer."""

    outcome: Outcome
    detail: str


@dataclass
class Decoded:
    """What became of some tasks.

    Attributes:
        answers: task number -> answer.
        faults: task number -> why there is none.
        read_bytes: bytes of the prefixes that were read.
        waited_s: seconds in which there was nothing to do but to wait for prefixes.
        decoded_s: the other seconds.
    """

    answers: dict[int, str] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    read_bytes: int = 0
    waited_s: float = 0.0
    decoded_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a task asks of its prefix: the tokens of a question, or none and the first token that is stored."""

    number: int
    tokens: Sequence[int]
    first_token: int | None


@dataclass(frozen=True, slots=True)
class RestoredBatch:
    """Samples that were restored together, and the seconds in which there was nothing to do but to wait for them."""

    samples: Sequence[StoredPrefix | UnreadablePrefix]
    waited_s: float


def restored_between_steps(
    cache: PrunedCache, rows: Sequence[Row], engine: Engine, threads: int
) -> Generator[RestoredBatch | list[Answer], None, None]:
    """Restore prefixes batch by batch, and decode as long as a batch has yet to come.

    On a GPU they are restored into the engine's memory; on a CPU in threads of the cache, and copied.

    Args:
        cache: where they are.
        rows: of the prefixes.
        engine: decodes the requests that the caller submits. What is not submitted when the caller asks for more loses
            its memory.
        threads: requests to the store in flight.

    Yields:
        Batches in the order of the rows, and between them what `Engine.step` returns. Behind the last batch requests
        may still be under way.

    Raises:
        StoreError: the store failed in another way than for a lost or damaged object.
    """
    targets = PoolTargets(engine) if engine.device.type == "cuda" else None
    with closing(cache.restored(rows, engine.device, threads=threads, allocate=targets)) as batches:
        try:
            while True:
                has_come = batches.ready()  # which begins to restore what has been fetched
                if engine.waiting or (engine.busy and not has_come):
                    yield engine.step()
                    continue
                started = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return
                yield RestoredBatch(batch, time.perf_counter() - started)
                if targets is not None:
                    targets.release()
        finally:
            if targets is not None:
                targets.close()


class PrefixDecoder:
    """Answers tasks from a cache by continuous batching: what is restored enters while the others decode.

    Answers of one token come from the cache's table alone: the prefill has stored them.

    Args:
        cache: where the prefixes are.
        replica: the model that made them.
        settings: how to answer.
    """

    def __init__(self, cache: PrunedCache, replica: Replica, settings: AnsweringConfig) -> None:
        self._cache, self._replica, self._settings = cache, replica, settings
        memory = None if settings.memory_gb is None else int(settings.memory_gb * 1e9)
        self._engine = Engine(replica.decoder, settings.sequences, memory)

    def run(self, tasks: Sequence[Task]) -> Decoded:
        """Answer all tasks. A prefix that is gone or damaged, or a question that cannot be put to it, is a `Fault`; it
        costs no other task.

        Raises:
            StoreError: the store failed in another way. The tasks may be given again, and others too.
        """
        done = Decoded()
        try:
            self._answer(tasks, done)
        except BaseException:
            self._engine.clear()  # else their answers would come with those of the next tasks
            raise
        return done

    def _answer(self, tasks: Sequence[Task], done: Decoded) -> None:
        started = time.perf_counter()
        asked: dict[Place, list[_Asked]] = {}
        rows: dict[Place, Row] = {}
        for task in tasks:
            question = self._asked(task, done)
            if question is not None:
                place = task.row["kv_object"], task.row["kv_offset"]
                asked.setdefault(place, []).append(question)
                rows[place] = task.row
        for place, outcome in self._restored(rows, done):
            if isinstance(outcome, StoredPrefix):
                done.read_bytes += rows[place]["kv_length"]
            for question in asked[place]:
                self._submit(outcome, question, done)
        while self._engine.busy:
            self._note(self._engine.step(), done)
        done.decoded_s = time.perf_counter() - started - done.waited_s

    def _asked(self, task: Task, done: Decoded) -> _Asked | None:
        """What a task asks; None where its answer or its fault is known already."""
        if self._cache.scope == "image":
            try:
                return _Asked(task.number, self._replica.question_tokens(task.row["prompt"], task.question), None)
            except PromptError as error:
                done.faults[task.number] = Fault(Outcome.REFUSED, str(error))
                return None
        if self._settings.temperature > 0:
            return _Asked(task.number, (), None)
        first = task.row["top_ids"][0]
        if self._settings.max_new_tokens == 1 or first in self._replica.stop_tokens:
            done.answers[task.number] = self._replica.writer.decode([first])
            return None
        return _Asked(task.number, (), first)

    def _restored(
        self, rows: dict[Place, Row], done: Decoded
    ) -> Iterator[tuple[Place, StoredPrefix | UnreadablePrefix]]:
        """Prefixes in the order in which they are stored; their requests must be submitted at once."""
        places = sorted(rows)
        following = iter(places)
        cache, threads = self._cache, self._settings.read_threads
        with closing(restored_between_steps(cache, [rows[place] for place in places], self._engine, threads)) as steps:
            for step in steps:
                if isinstance(step, RestoredBatch):
                    yield from zip(islice(following, len(step.samples)), step.samples, strict=True)
                    done.waited_s += step.waited_s
                else:
                    self._note(step, done)

    def _submit(self, outcome: StoredPrefix | UnreadablePrefix, question: _Asked, done: Decoded) -> None:
        if isinstance(outcome, UnreadablePrefix):
            kind = Outcome.LOST if isinstance(outcome, PrefixMissing) else Outcome.DAMAGED
            done.faults[question.number] = Fault(kind, str(outcome))
            return
        settings = self._settings
        self._engine.submit(
            Request(
                key=question.number,
                source=outcome.prefix,
                max_new_tokens=settings.max_new_tokens,
                tokens=question.tokens,
                stop_tokens=self._replica.stop_tokens,
                # A question has the same seed in whatever chunk, and on whatever replica, it is answered.
                sampling=Sampling(settings.temperature, settings.top_p, (settings.seed << 32) + question.number),
                first_token=question.first_token,
            )
        )

    def _note(self, answers: Sequence[Answer], done: Decoded) -> None:
        for answer in answers:
            assert isinstance(answer.key, int)  # a task's number
            number = answer.key
            if answer.error is not None:
                done.faults[number] = Fault(Outcome.REFUSED, str(answer.error))
            else:
                done.answers[number] = self._replica.writer.decode(answer.tokens)
