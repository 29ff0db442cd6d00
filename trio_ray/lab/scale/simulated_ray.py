"""A cluster of any size that a pool cannot tell from Ray's, in time that costs nothing: what the pool does is real, the
actors, their hosts and the clock are not.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from itertools import count
from typing import Any, Concatenate, ParamSpec, TypeVar
from unittest.mock import patch

from ray.exceptions import RayActorError, RayTaskError

from trio_ray.cluster import actors, hosts, pool
from trio_ray.cluster.actors import Placed

P = ParamSpec("P")
T = TypeVar("T")

UNKNOWN_CAUSE = 0.05
"""Share of the deaths that Ray tells without their cause."""

PARTITIONED = 0.25
"""Share of the deaths that the cluster only believes: the actor goes on with its work, and nobody hears of it."""

SICK_AFTER_S = 10.0


@dataclass(frozen=True)
class Wait:
    """So many seconds pass before an actor goes on."""

    seconds: float


Behaviour = Callable[[Any, random.Random], Generator[Any, None, None]]
"""What an actor does with a piece of work: it yields each `Wait`, and everything else as news. An actor that dies has
its generators closed."""


@dataclass(frozen=True)
class Hosts:
    """The cluster: hosts with room for some actors each. On `bad` ones every start fails; on `sick` ones all work
    fails; on `silent` ones an actor starts to load and is never heard of again.
    """

    hosts: int
    actors_each: int
    bad: int = 0
    sick: int = 0
    silent: int = 0
    deaths_an_hour: float = 0.0


class _Stream:
    """What a streaming call gives: news, as they come."""

    def __init__(self) -> None:
        self.news: deque[Any] = deque()
        self.ended = False

    def __next__(self) -> Any:
        if self.news:
            return self.news.popleft()
        raise StopIteration

    @property
    def ready(self) -> bool:
        return bool(self.news) or self.ended


@dataclass(eq=False)
class _Actor:
    """An actor of the simulation; it is its own handle."""

    ray: SimulatedRay
    behaviour: Behaviour
    avoided: frozenset[str]
    node: str | None = None
    dead: bool = False
    partitioned: bool = False
    streams: list[_Stream] = field(default_factory=list)
    works: list[Generator[Any, None, None]] = field(default_factory=list)

    @property
    def start(self) -> _Call:
        return _Call(lambda: self.ray.begin(self))

    @property
    def run(self) -> _Call:
        return _Call(lambda work: self.ray.work(self, work))


@dataclass(frozen=True)
class _Call:
    remote: Callable[..., _Stream]

    def options(self, num_returns: str) -> _Call:
        return self


@dataclass(frozen=True)
class _ActorClass:
    ray: SimulatedRay
    actor_class: Any
    avoided: frozenset[str] = frozenset()

    def options(self, label_selector: dict[str, str] | None = None, **resources: Any) -> _ActorClass:
        if label_selector is None:
            return self
        (selector,) = label_selector.values()
        return _ActorClass(self.ray, self.actor_class, frozenset(selector[len("!in(") : -1].split(",")))

    def remote(self, *arguments: Any) -> _Actor:
        self.ray.started += 1
        return _Actor(self.ray, self.ray.behaviour_of(self.actor_class, arguments), self.avoided)


def _counted(
    method: Callable[Concatenate[SimulatedRay, P], T],
) -> Callable[Concatenate[SimulatedRay, P], T]:
    """Count the CPU time of the simulation itself."""

    @wraps(method)
    def counted(self: SimulatedRay, /, *arguments: P.args, **named: P.kwargs) -> T:
        began = time.thread_time()
        try:
            return method(self, *arguments, **named)
        finally:
            self.cpu_s += time.thread_time() - began

    return counted


class SimulatedRay:
    """Stands in for the modules `ray`, `time` and `random`: the same seed gives the same job.

    Args:
        hosts: the cluster.
        behaviour_of: what an actor of a class with these arguments does with its work.
        seed: of all chance.

    Attributes:
        now: seconds since the start.
        started: actors that were asked for.
        deaths: of actors at work, and `partitions` among them.
        cpu_s: time that the simulation has taken, the actors' behaviour included.
    """

    def __init__(self, hosts: Hosts, behaviour_of: Callable[[Any, tuple[Any, ...]], Behaviour], seed: int = 0) -> None:
        self.hosts = hosts
        self.behaviour_of = behaviour_of
        self.now = 0.0
        self.started = self.deaths = self.partitions = 0
        self.cpu_s = 0.0
        self._dice = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        names = [f"host-{number}" for number in range(hosts.hosts)]
        self._free = dict.fromkeys(names, hosts.actors_each)
        kinds = ["bad"] * hosts.bad + ["sick"] * hosts.sick + ["silent"] * hosts.silent
        self._kind = dict(zip(names, kinds, strict=False))
        self._queue: list[_Actor] = []
        self._told = False

    @contextmanager
    def installed(self, *more: Any) -> Iterator[None]:
        """The pool takes this for Ray, for the clock and for chance; so do other modules that take the time."""
        with ExitStack() as stack:
            for module in (pool, hosts, actors):
                stack.enter_context(patch.object(module, "ray", self))
            for module in (pool, hosts, *more):
                stack.enter_context(patch.object(module, "time", self))
            stack.enter_context(patch.object(pool, "random", self._dice))
            yield

    def run_out(self) -> None:
        """Let everything happen that is still to come, such as the work of actors that are believed dead."""
        while self._events:
            self._pass_time(self._events[0][0])

    # Of `time`.
    def monotonic(self) -> float:
        return self.now

    @_counted
    def sleep(self, seconds: float) -> None:
        self._pass_time(self.now + seconds)

    # Of `ray`.
    @_counted
    def nodes(self) -> list[dict[str, Any]]:
        room = {"CPU": float(self.hosts.actors_each), "GPU": float(self.hosts.actors_each)}
        return [{"NodeID": name, "Alive": True, "Resources": room} for name in self._free]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.hosts.hosts), "GPU": float(self.hosts.hosts)}

    @_counted
    def wait(
        self, streams: Sequence[_Stream], num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[_Stream], list[_Stream]]:
        end = self.now + timeout
        ready = [stream for stream in streams if stream.ready]
        while not ready and self._events and self._events[0][0] <= end:
            self._told = False
            self._pass_time(self._events[0][0])
            ready = [stream for stream in streams if stream.ready] if self._told else []
        if not ready:
            self._pass_time(end)
        return ready[:num_returns], []

    def get(self, news: Any) -> Any:
        if isinstance(news, Exception):
            raise news
        return news

    @_counted
    def kill(self, actor: _Actor) -> None:
        self._end(actor)

    @_counted
    def remote(self, actor_class: Any) -> _ActorClass:
        return _ActorClass(self, actor_class)

    # Of an actor.
    @_counted
    def begin(self, actor: _Actor) -> _Stream:
        stream = _Stream()
        actor.streams.append(stream)
        self._queue.append(actor)
        self._at(1.0, self._place)
        return stream

    @_counted
    def work(self, actor: _Actor, work: object) -> _Stream:
        stream = _Stream()
        actor.streams.append(stream)
        if self._kind.get(actor.node or "") == "sick":
            self._at(SICK_AFTER_S, lambda: self._tell(actor, stream, _sick()))
            return stream
        doing = actor.behaviour(work, self._dice)
        actor.works.append(doing)
        self._at(0.0, lambda: self._go_on(actor, stream, doing))
        return stream

    def _go_on(self, actor: _Actor, stream: _Stream, doing: Generator[Any, None, None]) -> None:
        if actor.dead and not actor.partitioned:
            return
        for news in doing:
            if isinstance(news, Wait):
                self._at(news.seconds, lambda: self._go_on(actor, stream, doing))
                return
            self._tell(actor, stream, news)
        stream.ended = True
        self._told = True

    def _place(self) -> None:
        waiting, self._queue = self._queue, []
        free = [name for name, room in self._free.items() if room]
        for actor in waiting:
            if actor.dead:
                continue
            node = next((name for name in free if self._free[name] and name not in actor.avoided), None)
            if node is None:
                self._queue.append(actor)
                continue
            actor.node = node
            self._free[node] -= 1
            self._tell(actor, actor.streams[0], Placed(node, node))
            if self._kind.get(node) != "silent":
                self._at(self._dice.uniform(10, 60), partial(self._load, actor))

    def _load(self, actor: _Actor) -> None:
        if actor.dead:
            return
        if self._kind.get(actor.node or "") == "bad":
            self._die(actor)
            return
        self._tell(actor, actor.streams[0], f"{actor.node} GPU 0")
        if self.hosts.deaths_an_hour:
            self._at(self._dice.expovariate(self.hosts.deaths_an_hour / 3600), lambda: self._die_at_work(actor))

    def _die_at_work(self, actor: _Actor) -> None:
        if not actor.dead:
            self.deaths += 1
            actor.partitioned = self._dice.random() < PARTITIONED
            self.partitions += actor.partitioned
            self._die(actor)

    def _die(self, actor: _Actor) -> None:
        if not actor.dead:
            known = self._dice.random() >= UNKNOWN_CAUSE
            for stream in actor.streams:
                if not stream.ended:
                    self._tell(actor, stream, RayActorError(actor_id="simulated" if known else None))
            self._end(actor)

    def _tell(self, actor: _Actor, stream: _Stream, news: Any) -> None:
        if not actor.dead:
            stream.news.append(news)
            self._told = True

    def _end(self, actor: _Actor) -> None:
        if actor.dead:
            return
        actor.dead = True
        if not actor.partitioned:
            for doing in actor.works:
                doing.close()
        if actor.node is not None:
            self._free[actor.node] += 1
            self._at(0.0, self._place)

    def _at(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._number), act))

    def _pass_time(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = max(self.now, until)


def _sick() -> RayTaskError:
    cause = RuntimeError("CUDA error: an illegal memory access was encountered")
    return RayTaskError("run", "simulated", cause)
