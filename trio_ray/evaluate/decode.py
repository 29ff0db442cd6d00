"""Stored prefixes to answers, on one model. Knows nothing of Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice
from threading import Event

from trio_ray.cache.fetched import Row
from trio_ray.cache.part_tables import row_by_row
from trio_ray.cache.pruned_cache import BATCH, PrunedCache, StoredPrefix
from trio_ray.cache.unreadable import PrefixMissing, UnreadablePrefix
from trio_ray.errors import TrioRayError
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.join import Task
from trio_ray.evaluate.prefix_reader import PrefixReader, RestoredBatch
from trio_ray.evaluate.question import Outcome
from trio_ray.evaluate.turns import Turns
from trio_ray.model.decode.choice import Sampling
from trio_ray.model.decode.engine import Answer, Engine, Request
from trio_ray.model.prompt import PromptError
from trio_ray.model.replica import Replica

WARM_UP_ROWS = BATCH
"""Prompts that `PrefixDecoder.warm_up` answers: as many as are restored together, so that the decode memory gets the
size that it keeps.
"""
WARM_UP_AMONG = 256
"""`PrefixDecoder.warm_up` takes the longest of so many prompts: steps are recorded anew when a longer one comes."""

log = logging.getLogger(__name__)

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
        waited_s: seconds in which there was nothing to do but to wait for these prefixes.
        decoded_s: the other seconds in which the thread of these tasks drove the engine. It may have decoded for the
            tasks before, too, and the thread of the next tasks for these. No second counts for two chunks of tasks.
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


def needs_prefixes(cache: PrunedCache, settings: AnsweringConfig) -> bool:
    """Whether answers need prefixes. Else the table has them all: the most likely first token behind each prompt."""
    return cache.scope == "image" or settings.temperature > 0 or settings.max_new_tokens > 1


class EngineLost(RuntimeError):
    """The engine failed while it decoded these tasks and others. No `TrioRayError`: the process is to be replaced."""


@dataclass(frozen=True)
class AllRequested:
    """The last prefix of the tasks has been requested from the store: the next tasks may be given in another thread."""


@dataclass(eq=False)
class _Run:
    """Some tasks under way.

    Attributes:
        done: what became of them so far.
        asked: by place of a prefix, what is asked of it.
        rows: by place of a prefix, its row.
        decoding: requests that the engine has not answered.
        submitted: whether all requests were submitted.
        ended: set when all are answered, or when `error` says why they will not be.
    """

    done: Decoded = field(default_factory=Decoded)
    asked: dict[Place, list[_Asked]] = field(default_factory=dict)
    rows: dict[Place, Row] = field(default_factory=dict)
    decoding: int = 0
    submitted: bool = False
    error: Exception | None = None
    ended: Event = field(default_factory=Event)

    def end_if_answered(self) -> None:
        if self.submitted and not self.decoding:
            self.ended.set()

    def fail(self, error: Exception) -> None:
        if not self.ended.is_set():
            self.error = error
            self.ended.set()

    def wait(self) -> None:
        """Until the tasks have ended, in whatever thread. Raises `error`."""
        self.ended.wait()
        if self.error is not None:
            raise self.error


@dataclass(frozen=True, slots=True)
class _Key:
    """Of a request in the engine: whose task it is."""

    run: _Run
    number: int


class PrefixDecoder:
    """Answers tasks from a cache by continuous batching: what is restored enters while the others decode.

    Several threads may have tasks answered at the same time, so that the engine does not run empty between two chunks
    of tasks. One of them drives the engine at a time, for the requests of all: the one that has prefixes left to
    restore, as soon as the one before has none.

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
        self._turns = Turns()
        self._in_engine: set[_Run] = set()  # of the thread whose turn it is

    def warm_up(self) -> None:
        """Answer a few prompts of the cache for nothing, before any task, and record the decode steps of all sizes.

        The first restore and the first decode steps on a GPU take seconds: kernels are compiled or loaded, steps are
        recorded, the process that reads is started. What is wrong with these samples or the store is left to the tasks.
        """
        try:
            with closing(self._cache.scan()) as tables:
                first = islice(row_by_row(tables), WARM_UP_AMONG)
                rows = nlargest(WARM_UP_ROWS, first, key=lambda row: row["kv_length"] or 0)
            self.run([Task(number, "?", row) for number, row in enumerate(rows)])
            self._engine.record_steps()
        except TrioRayError as error:
            log.warning("the first answers will be slow, since none could be tried out: %s", error)

    def run(self, tasks: Sequence[Task]) -> Decoded:
        """Answer all tasks. See `overlapping`."""
        *_, done = self.overlapping(tasks)
        assert isinstance(done, Decoded)
        return done

    def overlapping(self, tasks: Sequence[Task]) -> Iterator[AllRequested | Decoded]:
        """Answer all tasks; the next ones may be given, in another thread, before these are done.

        A prefix that is gone or damaged, or a question that cannot be put to it, is a `Fault`; it costs no other task.

        Yields:
            `AllRequested`, unless no prefix is needed, and `Decoded` at the end. Resume it at once: the engine waits.

        Raises:
            StoreError: the store failed in another way. The tasks may be given again, and others too; those that were
                given beside them go on.
        """
        run = _Run()
        for task in tasks:
            self._ask(task, run)
        if run.rows:
            places = sorted(run.rows)
            threads = self._settings.read_threads
            rows = [run.rows[place] for place in places]
            reader = PrefixReader(self._cache, rows, self._engine, self._own_rows(run), threads)
            with self._turns:
                yield from self._drive(run, places, reader)
            run.wait()
        yield run.done

    def _own_rows(self, run: _Run) -> int:
        """Most rows that the questions and answers behind one prefix take."""
        longest = self._settings.max_new_tokens
        return max(sum(longest + len(asked.tokens) for asked in of_one) for of_one in run.asked.values())

    def _drive(self, run: _Run, places: Sequence[Place], reader: PrefixReader) -> Iterator[AllRequested]:
        """Restore a run's prefixes, and decode as long as no other run has prefixes to restore.

        If the store fails, only this run does. Any other error is the engine's, and so the other runs' as well.
        """
        started = time.perf_counter()
        self._in_engine.add(run)
        try:
            try:
                yield from self._restore(run, places, reader)
            except TrioRayError as error:
                self._engine.clear(lambda key: isinstance(key, _Key) and key.run is run)
                run.fail(error)
            while self._engine.busy and not self._turns.wanted:
                self._note(self._engine.step())
        except BaseException as error:
            self._engine.clear()  # else the answers would come with those of the next tasks
            for one in self._in_engine - {run}:
                one.fail(EngineLost(f"the engine failed, which decoded for other tasks too: {error!r}"))
            self._in_engine.clear()
            raise
        self._in_engine = {one for one in self._in_engine if not one.ended.is_set()}
        run.done.decoded_s = time.perf_counter() - started - run.done.waited_s

    def _restore(self, run: _Run, places: Sequence[Place], reader: PrefixReader) -> Iterator[AllRequested]:
        """Restore prefixes in the order in which they are stored, and submit what is asked of each at once."""
        following = iter(places)
        told = False
        with closing(reader):
            for step in reader.between_steps():
                if isinstance(step, RestoredBatch):
                    for place, outcome in zip(islice(following, len(step.samples)), step.samples, strict=True):
                        self._submit(outcome, place, run)
                    run.done.waited_s += step.waited_s
                else:
                    self._note(step)
                if reader.all_requested and not told:
                    told = True
                    yield AllRequested()
        run.submitted = True
        run.end_if_answered()

    def _ask(self, task: Task, run: _Run) -> None:
        """Find out what a task asks of its prefix, or its answer or fault where that is known already."""
        question = self._asked(task, run.done)
        if question is not None:
            place = task.row["kv_object"], task.row["kv_offset"]
            run.asked.setdefault(place, []).append(question)
            run.rows[place] = task.row

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
        if not needs_prefixes(self._cache, self._settings) or first in self._replica.stop_tokens:
            done.answers[task.number] = self._replica.writer.decode([first])
            return None
        return _Asked(task.number, (), first)

    def _submit(self, outcome: StoredPrefix | UnreadablePrefix, place: Place, run: _Run) -> None:
        if isinstance(outcome, UnreadablePrefix):
            kind = Outcome.LOST if isinstance(outcome, PrefixMissing) else Outcome.DAMAGED
            run.done.faults |= {question.number: Fault(kind, str(outcome)) for question in run.asked[place]}
            return
        run.done.read_bytes += run.rows[place]["kv_length"]
        settings = self._settings
        for question in run.asked[place]:
            self._engine.submit(
                Request(
                    key=_Key(run, question.number),
                    source=outcome.prefix,
                    max_new_tokens=settings.max_new_tokens,
                    tokens=question.tokens,
                    stop_tokens=self._replica.stop_tokens,
                    # A question has the same seed in whatever chunk, and on whatever replica, it is answered.
                    sampling=Sampling(settings.temperature, settings.top_p, (settings.seed << 32) + question.number),
                    first_token=question.first_token,
                )
            )
            run.decoding += 1

    def _note(self, answers: Sequence[Answer]) -> None:
        """Give answers to the runs that they are of."""
        for answer in answers:
            assert isinstance(answer.key, _Key)
            run, number = answer.key.run, answer.key.number
            if answer.error is not None:
                run.done.faults[number] = Fault(Outcome.REFUSED, str(answer.error))
            else:
                run.done.answers[number] = self._replica.writer.decode(answer.tokens)
            run.decoding -= 1
            run.end_if_answered()
