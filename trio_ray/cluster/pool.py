"""One pool of actors for every job: a factory of actors, and a queue of work."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from trio_ray.cluster.actors import ActorFactory, Downloading, Placed, WantsMore, no_room
from trio_ray.cluster.events import (
    ActorDownloads,
    ActorEnded,
    ActorLost,
    ActorReady,
    PoolEvent,
    Report,
    WorkDone,
    WorkFailed,
)
from trio_ray.cluster.hosts import HostRecord, was_preempted
from trio_ray.cluster.session import in_one_line
from trio_ray.config import ReplicasConfig
from trio_ray.errors import JobFailed, TrioRayError

W = TypeVar("W")

POLL_S = 0.5
LONGEST_PAUSE_S = 60.0


@dataclass(eq=False)
class _Item(Generic[W]):
    """A piece of work, how often and on which nodes it has failed, and when it may be tried again."""

    work: W
    failures: int = 0
    nodes: set[str] = field(default_factory=set)
    not_before: float = 0.0


@dataclass(eq=False)
class _Run(Generic[W]):
    """A piece of work on an actor. `stream` brings its reports; until it is `overlapping`, the actor takes no other."""

    item: _Item[W]
    stream: Any
    overlapping: bool = False


@dataclass(eq=False)
class _Actor(Generic[W]):
    """An actor and what it does: `start` until it is ready, then its runs."""

    number: int
    handle: Any
    start: Any
    node: str | None = None
    runs: list[_Run[W]] = field(default_factory=list)
    last_seen: float = field(default_factory=time.monotonic)

    @property
    def ready(self) -> bool:
        return self.start is None


class ActorPool(Generic[W]):
    """Runs work on between `settings.min` and `settings.max` actors.

    - All wanted actors are asked for at once. Those that the cluster has room for start; the others wait in Ray's
      queue, where a cluster autoscaler sees them. Work begins with the first that is ready.
    - An actor that dies is replaced while there is work. So is a sick one, which raised anything but a `TrioRayError`:
      a lost device fails at every piece of work, sooner than others are done with one. An actor without work left is
      ended, so that its GPU is free for others.
    - An actor that sends nothing for `settings.silence_limit_s` is killed, while it loads and while it works. One that
      downloads its model is not silent.
    - Work that fails is tried again after a pause, and given up after `settings.attempts`. A machine that was taken
      back (preemption) costs no attempt; a sick actor costs one a host, while there are other hosts. Attempts that
      bring the work forward (`is_progress`) begin the count anew: what always fails at the same place is to blame.
    - Actors are started again without limit while others work. Hosts on which they keep failing are avoided. The pool
      gives up when it has no actor at all and either every host has failed several times, or `start_timeout_s` is over
      while none is loading.
      That time begins anew with each host that is found to be bad: as long as there are hosts to try, it goes on.

    Ray Data's actor pool retries a killed actor's work without end, and reports only once it is done.

    Args:
        factory: makes the actors, whose class is a `PooledActor`.
        settings: how many, and with which resources and limits.
        overlap: pieces of work on an actor at the same time, after a `WantsMore`.
        is_progress: whether an actor's report tells of something that no later attempt has to do again.
    """

    def __init__(
        self,
        factory: ActorFactory,
        settings: ReplicasConfig,
        overlap: int = 1,
        is_progress: Callable[[Any], bool] = lambda report: False,
    ) -> None:
        self._factory = factory
        self._settings = settings
        self._overlap = overlap
        self._is_progress = is_progress
        self._hosts = HostRecord(settings)
        self._actors: list[_Actor[W]] = []
        self._waiting: deque[_Item[W]] = deque()
        self._asked_for = 0
        self._became_ready = 0
        self._failed_starts = 0
        self._next_start = 0.0
        self._last_ready = self._last_found = time.monotonic()
        self._last_error: str | None = None

    def run(self, work: Iterable[W]) -> Generator[PoolEvent[W], None, None]:
        """Do all work; events come as they happen. Closing the generator ends the actors.

        Raises:
            JobFailed: fewer than `settings.min` actors could be started in time, or none can be started any more.
        """
        self._waiting.extend(_Item(one) for one in work)
        needed = min(self._settings.min, len(self._waiting))  # there is never more than one actor a piece of work
        self._last_ready = self._last_found = time.monotonic()
        try:
            while self._waiting or any(actor.runs for actor in self._actors):
                yield from self._match_size()
                self._hand_out()
                for actor, run in self._changed():
                    if actor in self._actors:  # an event before may have shown that it died
                        yield from self._started(actor) if run is None else self._advance(actor, run)
                yield from self._kill_silent()
                self._give_up_when_hopeless(needed)
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)
            self._actors = []

    def _match_size(self) -> Iterator[PoolEvent[W]]:
        """Start actors that are missing; end those that have no work left."""
        busy = sum(bool(actor.runs) for actor in self._actors)
        wanted = min(self._settings.max, busy + len(self._waiting))
        idle = sorted((a for a in self._actors if not a.runs), key=lambda a: (not a.ready, a.node is None))
        for actor in idle[max(0, wanted - busy) :]:
            self._remove(actor)
            yield ActorEnded(actor.number)
        if len(self._actors) < wanted and time.monotonic() >= self._next_start:
            avoided = self._hosts.avoided()
            while len(self._actors) < wanted:
                handle = self._factory.start(self._settings, avoided)
                start = handle.start.options(num_returns="streaming").remote()
                self._actors.append(_Actor(self._asked_for, handle, start))
                self._asked_for += 1

    def _hand_out(self) -> None:
        # Idle actors first: a second piece of work for a busy one is worth less than a first one.
        for actor in sorted(self._actors, key=lambda actor: len(actor.runs)):
            free = actor.ready and len(actor.runs) < self._overlap and all(run.overlapping for run in actor.runs)
            now = time.monotonic()
            item = next((item for item in self._waiting if item.not_before <= now), None) if free else None
            if item is not None:
                self._waiting.remove(item)
                stream = actor.handle.run.options(num_returns="streaming").remote(item.work)
                actor.runs.append(_Run(item, stream))
                actor.last_seen = now

    def _changed(self) -> list[tuple[_Actor[W], _Run[W] | None]]:
        """The actors from which there is news, each with the run that it is about, or None for its start."""
        pending: dict[Any, tuple[_Actor[W], _Run[W] | None]] = {}
        for actor in self._actors:
            if actor.start is not None:
                pending[actor.start] = (actor, None)
            pending.update({run.stream: (actor, run) for run in actor.runs})
        if not pending:
            time.sleep(POLL_S)
            return []
        # The first to have news ends the wait: an actor that wants more must not wait for the others' reports.
        first, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S, fetch_local=False)
        if not first:
            return []
        changed, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0, fetch_local=False)
        return [pending[reference] for reference in changed]

    def _started(self, actor: _Actor[W]) -> Iterator[PoolEvent[W]]:
        actor.last_seen = time.monotonic()
        try:
            news = ray.get(next(actor.start))
        except RayError as error:
            yield from self._start_failed(actor, in_one_line(error), was_preempted(error, actor.node))
            return
        if isinstance(news, Placed):
            actor.node = news.node
            return
        if isinstance(news, Downloading):
            yield ActorDownloads(actor.number, news.what, news.done, news.size)
            return
        actor.start = None
        self._became_ready += 1
        self._failed_starts = 0
        self._last_error = None
        yield ActorReady(actor.number, news)

    def _start_failed(
        self, actor: _Actor[W], why: str, preempted: bool = False, silent: bool = False
    ) -> Iterator[PoolEvent[W]]:
        self._remove(actor)
        if not preempted:
            self._last_error = why
            if self._hosts.failed(actor.node, silent):
                self._last_found = time.monotonic()  # a host is known to be bad now, others are still to be tried
            else:
                self._failed_starts += 1
                self._next_start = time.monotonic() + _pause_s(self._failed_starts)
        yield ActorLost(actor.number, why)

    def _advance(self, actor: _Actor[W], run: _Run[W]) -> Iterator[PoolEvent[W]]:
        actor.last_seen = time.monotonic()
        try:
            news = ray.get(next(run.stream))
            if isinstance(news, WantsMore):
                run.overlapping = True
            else:
                if self._is_progress(news):
                    run.item.failures = 0
                    run.item.nodes.clear()
                yield Report(actor.number, run.item.work, news)
        except StopIteration:
            actor.runs.remove(run)
            self._hosts.worked(actor.node)
            yield WorkDone(actor.number, run.item.work)
        except RayTaskError as error:  # the actor lives; the work raised
            actor.runs.remove(run)
            if isinstance(error.cause, TrioRayError):
                yield from self._attempt_failed(run.item, in_one_line(error))
            else:
                self._hosts.failed(actor.node)
                yield from self._sick(actor, run.item, in_one_line(error))
        except RayError as error:
            yield from self._lost(actor, in_one_line(error), innocent=was_preempted(error, actor.node))

    def _sick(self, actor: _Actor[W], item: _Item[W], why: str) -> Iterator[PoolEvent[W]]:
        """An actor may have failed at its work, or the work may have made it fail: another host tells."""
        failed_here_before = actor.node in item.nodes
        item.nodes.add(actor.node or "")
        if failed_here_before and self._hosts.has_others(item.nodes):
            self._waiting.append(item)
        else:
            yield from self._attempt_failed(item, why)
        yield from self._lost(actor, why, innocent=True)

    def _lost(self, actor: _Actor[W], why: str, innocent: bool = False) -> Iterator[PoolEvent[W]]:
        """An actor is gone. The work that it was in the middle of is to blame; work that was only being finished is
        not.
        """
        self._remove(actor)
        yield ActorLost(actor.number, why)
        all_overlap = all(run.overlapping for run in actor.runs)
        for run in actor.runs:
            if innocent or (run.overlapping and not all_overlap):
                self._waiting.appendleft(run.item)
            else:
                yield from self._attempt_failed(run.item, f"its replica died: {why}")

    def _attempt_failed(self, item: _Item[W], why: str) -> Iterator[PoolEvent[W]]:
        item.failures += 1
        if item.failures >= self._settings.attempts:
            yield WorkFailed(item.work, item.failures, why)
        else:
            item.not_before = time.monotonic() + _pause_s(item.failures)
            self._waiting.append(item)  # last, so that what is sound is done before it fails again

    def _kill_silent(self) -> Iterator[PoolEvent[W]]:
        limit = self._settings.silence_limit_s
        for actor in list(self._actors):
            if time.monotonic() - actor.last_seen <= limit:
                continue
            why = f"it sent nothing for {limit:g} s (replicas.silence_limit_s)"
            if actor.runs:
                yield from self._lost(actor, why)
            elif not actor.ready and actor.node is not None:
                yield from self._start_failed(actor, f"while it loaded, {why}", silent=True)

    def _give_up_when_hopeless(self, needed: int) -> None:
        now, limit = time.monotonic(), self._settings.start_timeout_s
        if any(actor.ready for actor in self._actors):
            self._last_ready = now
        elif self._last_error is not None and self._failed_starts:
            if self._hosts.hopeless():
                raise JobFailed(f"replicas fail to start on every host of the cluster; the last: {self._last_error}")
            if now - max(self._last_ready, self._last_found) > limit:
                raise JobFailed(f"no replica could be started for {limit:g} s; the last error: {self._last_error}")
        # One that loads is not waiting for room; if it hangs, its silence ends it, and its host is known to be bad.
        is_loading = any(not actor.ready and actor.node is not None for actor in self._actors)
        if self._became_ready < needed and not is_loading and now - self._last_found > limit:
            because = f"; the last error: {self._last_error}" if self._last_error else ""
            raise JobFailed(no_room(self._settings, self._became_ready, needed) + because)

    def _remove(self, actor: _Actor[W]) -> None:
        self._actors.remove(actor)
        ray.kill(actor.handle)


def _pause_s(failures: int) -> float:
    """Seconds until the next try after so many failures. They double; chance keeps tries from coming all at once."""
    return min(LONGEST_PAUSE_S, 2.0 ** (failures - 1)) * random.uniform(0.5, 1.5)
