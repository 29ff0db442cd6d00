"""The actors of a job: what they must be able to do, and how one is started."""

from __future__ import annotations

import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import ray

from trio_ray.cluster.session import gpus_per_replica
from trio_ray.config import ActorConfig
from trio_ray.model.hub import downloads_shown_on

W = TypeVar("W")

DOWNLOAD_NEWS_EVERY_S = 1.0


@dataclass(frozen=True)
class Placed:
    """An actor's process has started on this host."""

    node: str
    host: str


@dataclass(frozen=True)
class Downloading:
    """An actor that loads downloads `what`: `done` of `size` bytes are there."""

    what: str
    done: int
    size: int


@dataclass(frozen=True)
class WantsMore:
    """An actor yields this when it can begin the next piece of work, although it still finishes the present one."""


class PooledActor(ABC, Generic[W]):
    """An actor that a pool can use. The constructor must be cheap; `load` does what takes time or may fail."""

    def start(self) -> Iterator[Placed | Downloading | str]:
        """Yields where the process runs, then loads, and yields what `load` returned; before that how far downloads of
        models are, about once a second.
        """
        yield Placed(ray.get_runtime_context().get_node_id(), socket.gethostname())
        yield from with_downloads(self.load)

    @abstractmethod
    def load(self) -> str:
        """Load what all work needs; returns what the actor runs on, for people."""

    @abstractmethod
    def run(self, work: W) -> Iterator[Any]:
        """Do a piece of work. What it yields reaches the job as a `Report`, but for `WantsMore`.

        Raises:
            TrioRayError: this work failed. After any other exception the actor is taken to be sick and is replaced.
        """


def with_downloads(load: Callable[[], str]) -> Iterator[Downloading | str]:
    """Call `load` in a thread: yields how far downloads of models are, about once a second, and what it returned."""
    news: SimpleQueue[Downloading | None] = SimpleQueue()

    def loaded() -> str:
        with downloads_shown_on(_DownloadNews(news)):
            return load()

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(loaded)
        result.add_done_callback(lambda _: news.put(None))
        while (one := news.get()) is not None:
            yield one
        yield result.result()


class _DownloadNews:
    """Puts how far a download is into a queue. A `DownloadDisplay`."""

    def __init__(self, news: SimpleQueue[Downloading | None]) -> None:
        self._news = news
        self._what, self._size, self._told = "", 0, 0.0

    def begin(self, what: str, size: int) -> None:
        """See `DownloadDisplay`."""
        self._what, self._size = what, size
        self.show(0)

    def show(self, done: int) -> None:
        """See `DownloadDisplay`."""
        if done == 0 or time.monotonic() - self._told >= DOWNLOAD_NEWS_EVERY_S:
            self._told = time.monotonic()
            self._news.put(Downloading(self._what, done, self._size))

    def end(self) -> None:
        """See `DownloadDisplay`."""


def place_of_this_actor() -> str:
    """Host and GPU that this actor runs on; where it has no GPU, its process."""
    gpus = ",".join(map(str, ray.get_gpu_ids())) if ray.is_initialized() else ""  # asking would start Ray
    return f"{socket.gethostname()} {f'GPU {gpus}' if gpus else f'process {os.getpid()}'}"


@dataclass(frozen=True)
class ActorFactory:
    """How an actor is made.

    Attributes:
        actor_class: of the actor.
        arguments: for its constructor; small, and free of credentials.
        calls_at_once: calls that an actor answers at the same time.
    """

    actor_class: type
    arguments: tuple[Any, ...]
    calls_at_once: int = 1

    def start(self, settings: ActorConfig, avoided_nodes: Iterable[str] = ()) -> Any:
        """Ask Ray for an actor, which waits in Ray's queue until the cluster has room. Returns its handle.

        Args:
            settings: the resources that it reserves.
            avoided_nodes: ids of nodes on which it must not run.
        """
        nodes = sorted(avoided_nodes)
        return (
            ray.remote(self.actor_class)
            .options(
                num_cpus=settings.cpus,
                num_gpus=gpus_per_replica(settings.gpus),
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=self.calls_at_once,
                label_selector={"ray.io/node-id": f"!in({','.join(nodes)})"} if nodes else None,
            )
            .remote(*self.arguments)
        )


def no_room(settings: ActorConfig, ready: int, needed: int) -> str:
    """The sentence for actors that did not start in time."""
    cluster = ray.cluster_resources()
    return (
        f"{ready} of at least {needed} replicas started in {settings.start_timeout_s:g} s; each wants "
        f"{settings.cpus:g} CPUs and {gpus_per_replica(settings.gpus):g} GPUs, and the cluster has "
        f"{cluster.get('CPU', 0):g} and {cluster.get('GPU', 0):g}: see replicas.cpus, replicas.gpus and "
        "replicas.start_timeout_s"
    )
