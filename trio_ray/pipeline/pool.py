"""Replicas on Ray: started as the cluster has room, given one shard at a time, replaced when they die."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from trio_ray.config import PipelineConfig
from trio_ray.errors import JobFailed
from trio_ray.pipeline.plan import Task
from trio_ray.pipeline.replica_actor import ReplicaActor, ReplicaOrder
from trio_ray.pipeline.shard_run import PartReport

POLL_S = 0.5
MAX_FAILED_STARTS = 3
"""Replicas in a row that may fail to load before the job gives up: the next would fail as well."""


@dataclass
class PoolEvent:
    """Something the job wants to know: exactly one of the fields is set beside `replica`."""

    report: PartReport | None = None
    shard_done: Task | None = None
    shard_failed: tuple[Task, int, str] | None = None
    replica_ready: str | None = None
    replica_lost: str | None = None


@dataclass
class _Replica:
    """An actor and what it is at. `pending` is the start or the shard's stream of reports."""

    actor: Any
    pending: Any
    task: Task | None = None
    ready: bool = False
    last_seen: float = field(default_factory=time.monotonic)


class ReplicaPool:
    """Runs tasks on between `replicas_min` and `replicas_max` replicas.

    All of the wanted replicas are asked for at once: those that the cluster has room for start, the others wait in
    Ray's queue, where a cluster autoscaler sees them; work begins with the first that is ready. A replica that dies is
    replaced while there is work, and one without work is ended, so that its GPU is free for others.

    Ray Data's actor pool retries a killed actor's shard without end and reports once a shard; here a shard that kills
    its replica is given up after `shard_attempts`, a silent replica is killed, and each part is reported as it is
    committed.
    """

    def __init__(self, order: ReplicaOrder, settings: PipelineConfig, gpus: float) -> None:
        self._order = order
        self._settings = settings
        self._gpus = gpus
        self._replicas: list[_Replica] = []
        self._failed_starts = 0
        self._ever_ready = 0

    def run(self, tasks: list[Task]) -> Generator[PoolEvent, None, None]:
        """Work through `tasks`; events come as they happen. Closing the generator ends the replicas.

        Raises:
            JobFailed: fewer than `replicas_min` replicas could be started in `start_timeout_s`, or replicas fail to
            load.
        """
        waiting = deque(tasks)
        attempts: dict[str, int] = {}
        deadline = time.monotonic() + self._settings.start_timeout_s
        needed = min(self._settings.replicas_min, len(tasks))  # more than one a shard are never started
        try:
            while waiting or any(replica.task for replica in self._replicas):
                self._match_size(len(waiting))
                self._hand_out(waiting)
                for replica in self._changed():
                    yield from self._advance(replica, waiting, attempts)
                yield from self._kill_silent(waiting, attempts)
                if self._ever_ready < needed and time.monotonic() > deadline:
                    raise JobFailed(self._start_problem())
        finally:
            for replica in self._replicas:
                ray.kill(replica.actor)
            self._replicas = []

    def _match_size(self, waiting: int) -> None:
        """Start replicas that are missing; end those that have no work left."""
        busy = sum(replica.task is not None for replica in self._replicas)
        wanted = min(self._settings.replicas_max, busy + waiting)
        for replica in [r for r in self._replicas if r.task is None][max(0, wanted - busy) :]:
            self._replicas.remove(replica)
            ray.kill(replica.actor)
        while len(self._replicas) < wanted:
            actor_class = ray.remote(ReplicaActor)
            actor = actor_class.options(
                num_cpus=self._settings.cpus_per_replica,
                num_gpus=self._gpus,
                max_restarts=0,
                max_task_retries=0,
            ).remote(self._order)
            self._replicas.append(_Replica(actor, actor.ready.remote()))

    def _hand_out(self, waiting: deque[Task]) -> None:
        for replica in self._replicas:
            if replica.ready and replica.task is None and waiting:
                replica.task = waiting.popleft()
                replica.pending = replica.actor.run_shard.options(num_returns="streaming").remote(replica.task)
                replica.last_seen = time.monotonic()

    def _changed(self) -> list[_Replica]:
        by_pending = {replica.pending: replica for replica in self._replicas if replica.pending is not None}
        if not by_pending:
            time.sleep(POLL_S)
            return []
        changed, _ = ray.wait(list(by_pending), num_returns=len(by_pending), timeout=POLL_S, fetch_local=False)
        if not changed:
            return []
        return [by_pending[pending] for pending in changed]

    def _advance(self, replica: _Replica, waiting: deque[Task], attempts: dict[str, int]) -> Iterator[PoolEvent]:
        replica.last_seen = time.monotonic()
        if replica.task is None:
            yield from self._started(replica)
            return
        try:
            yield PoolEvent(report=ray.get(next(replica.pending)))
        except StopIteration:
            yield PoolEvent(shard_done=replica.task)
            replica.task, replica.pending = None, None
        except RayTaskError as error:  # the actor lives; the shard raised
            yield from self._attempt_failed(replica, waiting, attempts, _sentence(error))
        except RayError as error:
            self._replicas.remove(replica)
            yield PoolEvent(replica_lost=_sentence(error))
            if getattr(error, "preempted", False) and replica.task is not None:
                waiting.appendleft(replica.task)  # a spot machine was taken back: not the shard's doing
                return
            yield from self._attempt_failed(replica, waiting, attempts, f"its replica died: {_sentence(error)}")

    def _started(self, replica: _Replica) -> Iterator[PoolEvent]:
        try:
            where = ray.get(replica.pending)
        except (RayActorError, RayTaskError) as error:
            self._replicas.remove(replica)
            self._failed_starts += 1
            yield PoolEvent(replica_lost=_sentence(error))
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise JobFailed(f"{MAX_FAILED_STARTS} replicas in a row failed to load: {_sentence(error)}") from None
            return
        replica.ready, replica.pending = True, None
        self._failed_starts = 0
        self._ever_ready += 1
        yield PoolEvent(replica_ready=where)

    def _attempt_failed(
        self, replica: _Replica, waiting: deque[Task], attempts: dict[str, int], why: str
    ) -> Iterator[PoolEvent]:
        task = replica.task
        assert task is not None
        replica.task, replica.pending = None, None
        attempts[task.shard.name] = attempts.get(task.shard.name, 0) + 1
        if attempts[task.shard.name] >= self._settings.shard_attempts:
            yield PoolEvent(shard_failed=(task, attempts[task.shard.name], why))
        else:
            waiting.append(task)  # last, so that what is sound is done before it kills again

    def _kill_silent(self, waiting: deque[Task], attempts: dict[str, int]) -> Iterator[PoolEvent]:
        limit = self._settings.shard_timeout_s
        for replica in list(self._replicas):
            if limit is not None and replica.task is not None and time.monotonic() - replica.last_seen > limit:
                ray.kill(replica.actor)
                self._replicas.remove(replica)
                why = f"no part was done for {limit:g} s"
                yield PoolEvent(replica_lost=why)
                yield from self._attempt_failed(replica, waiting, attempts, why)

    def _start_problem(self) -> str:
        settings, cluster = self._settings, ray.cluster_resources()
        return (
            f"{self._ever_ready} of at least {settings.replicas_min} replicas started in "
            f"{settings.start_timeout_s:g} s; each wants {settings.cpus_per_replica:g} CPUs and {self._gpus:g} GPUs, "
            f"and the cluster has {cluster.get('CPU', 0):g} and {cluster.get('GPU', 0):g}: see "
            "pipeline.cpus_per_replica, pipeline.gpus_per_replica and pipeline.start_timeout_s"
        )


def _sentence(error: Exception) -> str:
    """An error in one line: Ray puts the remote traceback into the message, the cause has the sentence."""
    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and cause is not None:
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Where loading failed, the message is the remote traceback, which ends with the cause; otherwise it begins with it.
    return lines[-1 if isinstance(error, RayActorError) and error.actor_init_failed else 0]
