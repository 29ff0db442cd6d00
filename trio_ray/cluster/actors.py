"""The actors of a job: what they must be able to do, and how one is started."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from trio_ray.cluster.session import gpus_per_replica
from trio_ray.config import ActorConfig

W = TypeVar("W")


@dataclass(frozen=True)
class Placed:
    """An actor's process has started on this host."""

    node: str
    host: str


@dataclass(frozen=True)
class WantsMore:
    """An actor yields this when it can begin the next piece of work, although it still finishes the present one."""


class PooledActor(ABC, Generic[W]):
    """An actor that a pool can use. The constructor must be cheap; `load` does what takes time or may fail."""

    def start(self) -> Iterator[Placed | str]:
        """Yields where the process runs, then loads, and yields what `load` returned."""
        yield Placed(ray.get_runtime_context().get_node_id(), socket.gethostname())
        yield self.load()

    @abstractmethod
    def load(self) -> str:
        """Load what all work needs; returns what the actor runs on, for people."""

    @abstractmethod
    def run(self, work: W) -> Iterator[Any]:
        """Do a piece of work. What it yields reaches the job as a `Report`, but for `WantsMore`.

        Raises:
            TrioRayError: this work failed. After any other exception the actor is taken to be sick and is replaced.
        """


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
