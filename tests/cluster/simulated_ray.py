"""A cluster of any size that a pool cannot tell from Ray's, in time that costs nothing: what the pool does is real, the
actors, their hosts and the clock are not.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ray.exceptions import RayActorError

from trio_ray.cluster.actors import Placed


@dataclass(frozen=True)
class Hosts:
    """The cluster: hosts with room for some actors each, of which the first `bad` ones fail at every start."""

    hosts: int
    actors_each: int
    bad: int
    deaths_an_hour: float = 0.0


class Stream:
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
class Actor:
    """An actor of the simulation; it is its own handle."""

    ray: SimulatedRay
    avoided: frozenset[str]
    node: str | None = None
    dead: bool = False
    streams: list[Stream] = field(default_factory=list)

    @property
    def start(self) -> _Call:
        return _Call(lambda: self.ray.begin(self))

    @property
    def run(self) -> _Call:
        return _Call(lambda work: self.ray.work(self, work))


@dataclass(frozen=True)
class _Call:
    remote: Callable[..., Stream]

    def options(self, num_returns: str) -> _Call:
        return self


class SimulatedRay:
    """Stands in for the modules `ray` and `time` and for an `ActorFactory`."""

    def __init__(self, hosts: Hosts, seed: int = 0) -> None:
        self.hosts = hosts
        self.now = 0.0
        self.done: Counter[object] = Counter()
        self.started = 0
        self._dice = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._free = {f"host-{number}": hosts.actors_each for number in range(hosts.hosts)}
        self._bad = {f"host-{number}" for number in range(hosts.bad)}
        self._queue: list[Actor] = []
        self._told = False

    # Of `time`.
    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self._pass_time(self.now + seconds)

    # Of `ray`.
    def nodes(self) -> list[dict[str, Any]]:
        room = {"CPU": float(self.hosts.actors_each), "GPU": float(self.hosts.actors_each)}
        return [{"NodeID": name, "Alive": True, "Resources": room} for name in self._free]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.hosts.hosts), "GPU": float(self.hosts.hosts)}

    def wait(
        self, streams: Sequence[Stream], num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Stream], list[Stream]]:
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

    def kill(self, actor: Actor) -> None:
        self._end(actor)

    # Of a factory.
    def start(self, settings: object, avoided: Iterable[str] = ()) -> Actor:
        self.started += 1
        return Actor(self, frozenset(avoided))

    def begin(self, actor: Actor) -> Stream:
        stream = Stream()
        actor.streams.append(stream)
        self._queue.append(actor)
        self._at(1.0, self._place)
        return stream

    def work(self, actor: Actor, work: object) -> Stream:
        stream = Stream()
        actor.streams.append(stream)
        for part in range(3):
            self._at(self._dice.uniform(40, 80) * (part + 1), lambda part=part: self._report(actor, stream, work, part))
        return stream

    def _report(self, actor: Actor, stream: Stream, work: object, part: int) -> None:
        if actor.dead:
            return
        self._tell(stream, f"{work} {part}")
        if part == 2:
            self.done[work] += 1
            stream.ended = True

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
            self._tell(actor.streams[0], Placed(node, node))
            self._at(self._dice.uniform(10, 60), lambda actor=actor: self._load(actor))

    def _load(self, actor: Actor) -> None:
        if actor.dead:
            return
        if actor.node in self._bad:
            self._die(actor)
            return
        self._tell(actor.streams[0], "ready")
        if self.hosts.deaths_an_hour:
            self._at(self._dice.expovariate(self.hosts.deaths_an_hour / 3600), lambda: self._die(actor))

    def _die(self, actor: Actor) -> None:
        if not actor.dead:
            self._end(actor)
            for stream in actor.streams:
                if not stream.ended:
                    self._tell(stream, RayActorError())

    def _tell(self, stream: Stream, news: Any) -> None:
        stream.news.append(news)
        self._told = True

    def _end(self, actor: Actor) -> None:
        if not actor.dead:
            actor.dead = True
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
