"""Continuous batching: answers to many requests behind restored prefixes, at the speed of the memory.

A request waits until the pool has room for it; then its question, if it has one, is read in one pass with the others
that enter, and from then on it takes part in every decode step until its answer ends. The next step is always launched
before the host looks at the tokens of the one before, so the device never waits for the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.prefix import NoFirstToken, Prefix
from trio_ray.model.decode.choice import GREEDY, Sampling, choose
from trio_ray.model.decode.graphs import BATCH_SIZES
from trio_ray.model.decode.memory import GROWTH, DecodeMemory, free_memory
from trio_ray.model.decode.pool import KVPool, OutOfRows, OwnRows, PoolPrefix, PoolShape
from trio_ray.model.decode.rows import SlotState
from trio_ray.model.decoder import Decoder
from trio_ray.tensors import on_device, to_host

T = TypeVar("T")

MAX_SEQUENCES = BATCH_SIZES[-1]
ENTER_TOGETHER = 8
"""A full engine waits until one sequence in so many has left: those that enter are read in a pass of their own, which
takes about as long as a step, however few they are.
"""
QUESTION_ROWS = 8192
"""Most question tokens that one pass reads."""


class End(StrEnum):
    """Why an answer ends."""

    STOP = "stop"
    """It ends with a stop token."""
    LENGTH = "length"
    """It has as many tokens as were wanted, or the model's context is full."""
    REFUSED = "refused"
    """The request cannot be decoded; `Answer.error` says why."""


class RequestRefused(TrioRayError):
    """A request that cannot be decoded: its rows do not fit into the memory or the model's context."""


@dataclass(eq=False)
class HeldSequence:
    """A prefix in the pool and the tokens behind it, kept between requests: a conversation (`Engine.hold`).

    Attributes:
        prefix: its extents.
        length: rows of the unpruned prompt.
        top_ids, top_logprobs: as in `Prefix`.
        own: room for appended tokens; None as long as there is none.
        appended: tokens in it. Fewer may be set before the next request: the others are taken back.
    """

    prefix: PoolPrefix
    length: int
    top_ids: Tensor
    top_logprobs: Tensor
    own: OwnRows | None = None
    appended: int = 0


@dataclass(frozen=True)
class Request:
    """Something to answer.

    Attributes:
        key: names the answer.
        source: a prefix, or a held sequence that goes on from where it stands. Requests that name the same prefix
            object share its rows.
        max_new_tokens: longest answer.
        tokens: what is read behind the source first, a question. Without any, the answer begins with the first token
            that is stored with the prefix.
        stop_tokens: each of them ends an answer, and is its last token.
        sampling: how tokens are chosen. A stored first token is drawn from the stored entries (`cache.top_k`).
        first_token: the stored first token, where the caller knows it; reading it from a prefix on a GPU waits.
    """

    key: Hashable
    source: Prefix | HeldSequence
    max_new_tokens: int
    tokens: Sequence[int] = ()
    stop_tokens: Sequence[int] = ()
    sampling: Sampling = GREEDY
    first_token: int | None = None


@dataclass(frozen=True)
class Answer:
    """What became of a request. `tokens` includes the stop token; `error` is set where it was refused."""

    key: Hashable
    tokens: list[int]
    end: End
    error: RequestRefused | None = None


@dataclass(frozen=True)
class _Waiting:
    """A request that has not entered, and its prefix's rows where it was restored into the pool; they are held."""

    request: Request
    restored: PoolPrefix | None


@dataclass(eq=False)
class _Running:
    """A request in the pool.

    Attributes:
        limit: tokens of the answer at most.
        launched: tokens of the answer that are known, or that the device is at work on.
        ended: its tokens are listened to no more.
        left: its slot, and what was reserved for it alone, are free.
    """

    request: Request
    held: HeldSequence
    slot: int
    limit: int
    launched: int
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    left: bool = False

    @property
    def is_held(self) -> bool:
        """Whether its rows stay for later requests (`Engine.hold`)."""
        return self.held is self.request.source


@dataclass(frozen=True)
class _Pass:
    """A pass that was launched: the sequences, and their tokens on the host once `done` has happened."""

    sequences: list[_Running]
    tokens: Tensor
    done: torch.cuda.Event | None

    def is_done(self) -> bool:
        """Whether the tokens are there."""
        return self.done is None or self.done.query()


class Engine:
    """Decodes many sequences at once. Not for several threads.

    Args:
        decoder: the model.
        max_sequences: most sequences at a time.
        memory: bytes that keys and values may take, by default `free_memory`; the pool grows up to this.
    """

    def __init__(self, decoder: Decoder, max_sequences: int = MAX_SEQUENCES, memory: int | None = None) -> None:
        weight = next(decoder.embed.parameters())
        self._decoder, self._device, self._dtype = decoder, weight.device, weight.dtype
        self._max_sequences = max_sequences
        self._limit = free_memory(self._device) if memory is None else memory
        self._memory: DecodeMemory | None = None
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Running] = []
        self._free_slots = list(range(max_sequences))
        self._launched: deque[_Pass] = deque()
        self._answers: list[Answer] = []
        self._slots: tuple[list[int], Tensor] = ([], torch.empty(0))

    @property
    def busy(self) -> bool:
        """Whether an answer has yet to be returned."""
        return bool(self._waiting or self._running or self._launched or self._answers)

    @property
    def waiting(self) -> int:
        """Requests that have not entered yet."""
        return len(self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            NoFirstToken: it has no tokens, and none is stored with the prefix either.
        """
        if not request.tokens and request.first_token is None and not len(request.source.top_ids):
            raise NoFirstToken("the prefix ends with its image: ask a question behind it (Replica.ask)")
        source, restored = request.source, None
        if isinstance(source, Prefix) and self._memory is not None:
            restored = self._memory.pool.find(source)
            if restored is not None:
                self._memory.pool.hold(restored)
        self._waiting.append(_Waiting(request, restored))

    def run(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer all requests, in the order in which they are done. The iterable is read as room becomes free."""
        source, more = iter(requests), True
        while more or self.busy:
            while more and len(self._waiting) < self._max_sequences:
                request = next(source, None)
                more = request is not None
                if request is not None:
                    self.submit(request)
            yield from self.step()

    def step(self, under_way: int = 1) -> list[Answer]:
        """Let requests enter, launch one decode step, and return the answers that are known to be done.

        Args:
            under_way: passes that a GPU may have left to do; the host waits for those before. With more of them the
                host may do other work, and an answer that ends with a stop token is decoded for as many tokens more.
        """
        self._admit()
        ready = [sequence for sequence in self._running if sequence.launched < sequence.limit]
        if ready:
            self._decode(ready)
        self._look(under_way if ready and self._device.type == "cuda" else 0)
        answers, self._answers = self._answers, []
        return answers

    def record_steps(self) -> None:
        """Record the decode step of every batch size on a GPU, for the pool as it is: before there is anything to
        decode, instead of when a batch first has that size. Does nothing where nothing was decoded yet.
        """
        if self._memory is not None:
            self._memory.record_steps(self._max_sequences)

    def clear(self, which: Callable[[Hashable], bool] = lambda key: True) -> None:
        """Forget requests, and free what they hold. Held sequences stay, without what was being appended.

        Args:
            which: whether the request of a key is forgotten; all are by default. The others go on.
        """
        for waiting in self._waiting:
            if waiting.restored is not None and which(waiting.request.key):
                self.pool.release(waiting.restored)
        self._waiting = deque(waiting for waiting in self._waiting if not which(waiting.request.key))
        for sequence in {*self._running, *(one for launched in self._launched for one in launched.sequences)}:
            sequence.ended |= which(sequence.request.key)
        self._leave([sequence for sequence in self._running if sequence.ended])
        self._answers = [answer for answer in self._answers if not which(answer.key)]

    def hold(self, prefixes: Sequence[Prefix]) -> list[HeldSequence]:
        """Put prefixes into the pool and keep them there, with all that requests append to them, until `drop`.

        Raises:
            RequestRefused: there is no room for all of them; none is kept.
        """
        held: list[HeldSequence] = []
        wanted = [sum(segment.rows for segment in run) for run in zip(*(p.segments for p in prefixes), strict=True)]
        try:
            for prefix in prefixes:
                rows = self._growing(wanted, partial(self._memory_for(prefix).add, prefix))
                held.append(HeldSequence(rows, prefix.length, prefix.top_ids, prefix.top_logprobs))
        except OutOfRows as error:
            for sequence in held:
                self.drop(sequence)
            raise RequestRefused(f"the prefixes do not fit into the decode memory: {error}") from None
        return held

    def drop(self, held: HeldSequence) -> None:
        """Free a held sequence; none of its requests may be running."""
        if self._memory is None:
            return
        self._memory.release(held.prefix)
        if held.own is not None:
            self._memory.pool.free_own(held.own)
            held.own = None

    def reserve(
        self,
        shape: PoolShape,
        samples: Sequence[Sequence[int]],
        own_rows: int,
        unasked: int = 0,
        wait: bool = True,
    ) -> list[PoolPrefix] | None:
        """Rows for prefixes that are about to be restored, held once; see `PoolTargets`.

        There is room for what will be appended to them, and to all that wait, too. A pool that has to grow does so for
        as many prefixes like these as are decoded at a time, since every growth copies it and makes the recorded steps
        useless.

        Args:
            shape: of the prefixes.
            samples: the rows of each prefix in each run of layers.
            own_rows: that the questions and answers behind one of these prefixes will take.
            unasked: earlier prefixes for which no request has been submitted yet.
            wait: where rows are short, decode until sequences have left.

        Returns:
            The extents; None where there is no room for all of them, and with `wait` would be none even if all
            sequences had left.
        """
        prefix_rows = [sum(rows) for rows in zip(*samples, strict=True)]
        batches = 1 + self._max_sequences / len(samples)
        in_all = [int((rows + len(samples) * own_rows) * batches * (1 + GROWTH)) for rows in prefix_rows]
        wanted = [rows + (len(samples) + unasked) * own_rows for rows in prefix_rows]
        while True:
            held: list[PoolPrefix] = []
            waited_for = self._rows_waited_for(len(wanted))
            all_rows = [new + own for new, own in zip(wanted, waited_for, strict=True)]
            try:
                memory = self._memory_of(shape)
                if any(free < need for free, need in zip(memory.pool.free_rows, all_rows, strict=True)):
                    raise OutOfRows("the requests that wait need what is left")
                for rows in samples:
                    held.append(memory.pool.reserve_prefix(rows))
            except OutOfRows:
                for prefix in held:
                    memory.release(prefix)
                if self._memory is not None and self._memory.grow(all_rows, in_all):
                    continue
                if not wait or not (self._running or self._waiting):
                    return None
                self._answers = self.step()  # kept for the next step's caller
            else:
                return held

    @property
    def pool(self) -> KVPool:
        """The pool in use. Another one takes its place when prefixes of another shape come."""
        assert self._memory is not None
        return self._memory.pool

    @property
    def dtype(self) -> torch.dtype:
        """What keys and values are kept as."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where it decodes."""
        return self._device

    def _memory_for(self, prefix: Prefix) -> DecodeMemory:
        return self._memory_of(PoolShape.of(prefix, self._dtype))

    def _memory_of(self, shape: PoolShape) -> DecodeMemory:
        """The pool for prefixes of this shape. Raises `OutOfRows` where another one is in use."""
        if self._memory is None or self._memory.pool.shape != shape:
            if self._memory is not None:
                if self._memory.pool.used:
                    raise OutOfRows("prefixes of another schedule are in the pool")
                self._memory.forget_graphs()
            self._memory = None  # its bytes are free before the next one takes its own
            self._memory = DecodeMemory(self._decoder, shape, self._max_sequences, self._limit)
        return self._memory

    def _growing(self, rows: Sequence[int], take: Callable[[], T]) -> T:
        """Take so many rows of each run; where they are short, the pool grows for all that wait. Raises `OutOfRows`."""
        memory = self._memory
        assert memory is not None
        with suppress(OutOfRows):
            return take()
        waited_for = self._rows_waited_for(len(rows))
        memory.grow([max(of) for of in zip(rows, waited_for, strict=True)])
        with suppress(OutOfRows):
            return take()
        # There may be enough rows, but not in one piece, or not in the run that needs them.
        memory.grow([free + more for free, more in zip(memory.pool.free_rows, rows, strict=True)])
        with suppress(OutOfRows):
            return take()
        memory.restart(rows)
        return take()

    def _rows_waited_for(self, runs: int) -> list[int]:
        """Rows of each run that the waiting requests take, as many of them as may enter at once."""
        total: list[int] = [0] * runs
        seen: set[int] = set()
        for waiting in islice(self._waiting, self._max_sequences - len(self._running)):
            request, source = waiting.request, waiting.request.source
            own = len(request.tokens) + request.max_new_tokens
            own += source.appended if isinstance(source, HeldSequence) else 0
            for run in range(runs):
                total[run] += own
            if waiting.restored is not None or id(source) in seen:
                continue
            if isinstance(source, Prefix) and len(source.segments) == runs:
                seen.add(id(source))
                for run, segment in enumerate(source.segments):
                    total[run] += segment.rows
        return total

    def _admit(self) -> None:
        """Let waiting requests enter, in order, as long as there is room."""
        free = self._max_sequences - len(self._running)
        if self._running and free < min(len(self._waiting), self._max_sequences // ENTER_TOGETHER):
            return
        entering: list[_Running] = []
        while self._waiting and len(self._running) + len(entering) < self._max_sequences:
            waiting = self._waiting[0]
            try:
                sequence = self._enter(waiting)
            except OutOfRows as error:
                if self._running or entering:
                    break
                self._refuse(waiting.request, f"it does not fit into the decode memory: {error}")
                sequence = None
            self._waiting.popleft()
            if sequence is not None:
                entering.append(sequence)
            elif waiting.restored is not None:
                self.pool.release(waiting.restored)
        if entering:
            self._running += entering
            self._place(entering)

    def _enter(self, waiting: _Waiting) -> _Running | None:
        """Give a request its rows; None where it is answered without any. Raises `OutOfRows`."""
        request, source = waiting.request, waiting.request.source
        before = len(request.tokens) + (source.appended if isinstance(source, HeldSequence) else 0)
        # The last token of an answer is not read, so it needs neither a row nor a position.
        limit = min(request.max_new_tokens, self._decoder.context - source.length - before + 1)
        if limit < min(1, request.max_new_tokens):
            self._refuse(request, f"the question ends behind the model's context of {self._decoder.context} positions")
            return None
        known = [] if request.tokens or limit < 1 else [_first_token(request)]
        stopped = bool(known) and known[0] in request.stop_tokens
        if limit == len(known) or stopped:
            self._answers.append(Answer(request.key, known, End.STOP if stopped else End.LENGTH))
            return None
        held = self._with_rows(source, waiting.restored, before + limit - 1)
        return _Running(request, held, self._free_slots.pop(), limit, len(known), known)

    def _with_rows(self, source: Prefix | HeldSequence, restored: PoolPrefix | None, own: int) -> HeldSequence:
        """The rows of a request, with room for `own` appended tokens. Raises `OutOfRows`, and nothing has changed."""
        if isinstance(source, Prefix) and restored is not None:
            room = self._growing([own] * self.pool.runs, partial(self.pool.take_own, own))
            return HeldSequence(restored, source.length, source.top_ids, source.top_logprobs, room)
        if isinstance(source, Prefix):
            memory = self._memory_for(source)
            rows = [segment.rows + own for segment in source.segments]
            return self._growing(rows, partial(_take, memory, source, own))
        assert self._memory is not None
        pool = self._memory.pool
        if source.own is None:
            source.own = self._growing([own] * pool.runs, partial(pool.take_own, own))
        elif source.own.rows < own:
            move = partial(pool.move_own, source.own, source.appended, own)
            source.own = self._growing([own] * pool.runs, move)
        return source

    def _place(self, entering: Sequence[_Running]) -> None:
        """Tell the device of sequences, and read their questions."""
        assert self._memory is not None
        states = []
        for sequence in entering:
            held, known = sequence.held, sequence.tokens
            assert held.own is not None
            states.append(
                SlotState(
                    held.prefix.starts, held.prefix.rows, held.own.starts, held.appended, held.length,
                    known[0] if known else 0,
                )
            )  # fmt: skip
            self._memory.note_longest([rows + held.own.rows for rows in held.prefix.rows])
        self._memory.table.write([sequence.slot for sequence in entering], states)
        asked = [sequence for sequence in entering if sequence.request.tokens]
        while asked:
            count, rows = 1, len(asked[0].request.tokens)
            while count < len(asked) and rows + len(asked[count].request.tokens) <= QUESTION_ROWS:
                rows += len(asked[count].request.tokens)
                count += 1
            self._read_questions(asked[:count])
            asked = asked[count:]

    def _read_questions(self, sequences: list[_Running]) -> None:
        assert self._memory is not None
        slots = [sequence.slot for sequence in sequences]
        tokens = [sequence.request.tokens for sequence in sequences]
        logits = self._memory.read(slots, tokens)
        self._follow(sequences, on_device(slots, self._device), logits, [len(run) for run in tokens])

    def _decode(self, sequences: list[_Running]) -> None:
        """Launch a step for sequences that want more tokens."""
        assert self._memory is not None
        slots = [sequence.slot for sequence in sequences]
        if slots != self._slots[0]:
            self._slots = slots, on_device(slots, self._device)
        logits = self._memory.step(self._slots[1].int())
        self._follow(sequences, self._slots[1], logits, [1] * len(slots))

    def _follow(self, sequences: list[_Running], slots: Tensor, logits: Tensor, counts: Sequence[int]) -> None:
        """Choose the next tokens, on the device, and send them to the host without waiting."""
        assert self._memory is not None
        table = self._memory.table
        how = [sequence.request.sampling for sequence in sequences]
        tokens = choose(logits, how, [sequence.launched for sequence in sequences]).int()
        table.token.index_copy_(0, slots, tokens)
        table.own_rows.index_add_(0, slots, on_device(counts, self._device, torch.int32))
        for sequence in sequences:
            sequence.launched += 1
        # Whatever the device is given from now on comes behind their last tokens.
        self._leave([one for one in sequences if one.launched == one.limit and not one.is_held])
        done = None
        tokens = to_host(tokens)
        if self._device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        self._launched.append(_Pass(sequences, tokens, done))

    def _look(self, under_way: int) -> None:
        """Read the tokens of the passes that are done, and wait until no more than so many are not."""
        while self._launched and (len(self._launched) > under_way or self._launched[0].is_done()):
            one = self._launched.popleft()
            if one.done is not None:
                one.done.synchronize()
            for sequence, token in zip(one.sequences, one.tokens.tolist(), strict=True):
                if not sequence.ended:  # else the step was launched before its end was known
                    self._hear(sequence, token)

    def _hear(self, sequence: _Running, token: int) -> None:
        """Take note of a token; its sequence ends if it is the last."""
        sequence.tokens.append(token)
        stopped = token in sequence.request.stop_tokens
        if not stopped and len(sequence.tokens) < sequence.limit:
            return
        sequence.ended = True
        request = sequence.request
        if sequence.is_held:
            sequence.held.appended += len(request.tokens) + len(sequence.tokens) - 1
        if not sequence.left:
            self._leave([sequence])
        self._answers.append(Answer(request.key, sequence.tokens, End.STOP if stopped else End.LENGTH))

    def _leave(self, sequences: Sequence[_Running]) -> None:
        """Free the slots of sequences and what was reserved for them alone; others may enter."""
        for sequence in sequences:
            sequence.left = True
            self._free_slots.append(sequence.slot)
            if not sequence.is_held:
                self.drop(sequence.held)
        if sequences:
            self._running = [sequence for sequence in self._running if not sequence.left]

    def _refuse(self, request: Request, why: str) -> None:
        error = RequestRefused(f"request {request.key!r}: {why}")
        self._answers.append(Answer(request.key, [], End.REFUSED, error))


def _take(memory: DecodeMemory, prefix: Prefix, own: int) -> HeldSequence:
    """A prefix in the pool with room for `own` tokens. Raises `OutOfRows`, and nothing has changed."""
    held = memory.add(prefix)
    try:
        room = memory.pool.take_own(own)
    except OutOfRows:
        memory.release(held)
        raise
    return HeldSequence(held, prefix.length, prefix.top_ids, prefix.top_logprobs, room)


def _first_token(request: Request) -> int:
    """The first token of an answer to a prefix's own prompt."""
    if request.first_token is not None:
        return request.first_token
    source, how = request.source, request.sampling
    if how.temperature == 0:
        return int(source.top_ids[0])
    number = int(choose(source.top_logprobs[None].cpu(), [how], [0]))
    return int(source.top_ids[number])


def prompt_requests(
    prefixes: Sequence[Prefix], max_new_tokens: int, stop_tokens: Sequence[int], sampling: Sampling = GREEDY
) -> list[Request]:
    """Requests, with keys from 0 on, for answers to the prompts that prefixes end with.

    Raises:
        NoFirstToken: a prefix of scope image.
    """
    first: Sequence[int | None] = [None] * len(prefixes)
    if prefixes and sampling.temperature == 0:
        if all(len(prefix.top_ids) for prefix in prefixes):
            first = torch.stack([prefix.top_ids[0] for prefix in prefixes]).tolist()  # one wait for a GPU, not many
        else:
            first = [prefix.first_token for prefix in prefixes]
    return [
        Request(number, prefix, max_new_tokens, (), stop_tokens, sampling, token)
        for number, (prefix, token) in enumerate(zip(prefixes, first, strict=True))
    ]


def generate(
    decoder: Decoder,
    prefixes: Sequence[Prefix],
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    questions: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Greedy answers behind prefixes of any lengths, in order, by an engine of their own.

    Args:
        decoder: the model that made the prefixes.
        prefixes: B of them.
        max_new_tokens: longest answer.
        stop_tokens: each of them ends an answer, and is its last token.
        questions: of each prefix the tokens that are read behind it first. Without them the first token of an answer
            is the one stored with the prefix: the prefill has already computed it.

    Raises:
        NoFirstToken: a prefix of scope image without a question.
        RequestRefused: a request does not fit into the memory or the model's context.
    """
    if questions is None:
        requests = prompt_requests(prefixes, max_new_tokens, stop_tokens)
    else:
        requests = [
            Request(number, prefix, max_new_tokens, tokens, stop_tokens)
            for number, (prefix, tokens) in enumerate(zip(prefixes, questions, strict=True))
        ]
    return answers_in_order(Engine(decoder), requests)


def answers_in_order(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """The tokens of answers to requests whose keys are 0, 1, ... Raises `RequestRefused` for the first that is."""
    answers = {answer.key: answer for answer in engine.run(requests)}
    for answer in answers.values():
        if answer.error is not None:
            raise answer.error
    return [answers[number].tokens for number in range(len(requests))]
