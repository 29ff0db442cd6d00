"""Replicas on Ray: started as the cluster has room, given one shard at a time, replaced when they die."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from trio_ray.cluster.session import in_one_line
from trio_ray.config import PipelineConfig
from trio_ray.errors import JobFailed, TrioRayError
from trio_ray.precompute.plan import Task
from trio_ray.precompute.replica_actor import ReplicaActor, ReplicaOrder
from trio_ray.precompute.shard_run import SHARDS_AT_ONCE, InputRead
from trio_ray.precompute.shard_writer import PartReport

POLL_S = 0.5
MAX_FAILED_STARTS = 3
"""Replicas in a row that may fail to load, while none works, before the job gives up: the next would fail as well."""


@dataclass
class PoolEvent:
    """Something the job wants to know: exactly one of the fields is set, beside the number of the `replica`.

    A replica without work left is ended, whether it was ready or still starting; it is not lost.
    """

    report: PartReport | None = None
    shard_done: Task | None = None
    shard_failed: tuple[Task, int, str] | None = None
    replica_ready: str | None = None
    replica_lost: str | None = None
    replica_ended: bool = False
    replica: int | None = None


@dataclass(eq=False)
class _Run:
    """A shard on a replica. `stream` brings its reports; `reading` until all of its input is read."""

    task: Task
    stream: Any
    reading: bool = True


@dataclass(eq=False)
class _Replica:
    """An actor and what it is at: its `start` until that is over, then up to two shards, of which one is being stored
    while the next is read.
    """

    number: int
    actor: Any
    start: Any
    runs: list[_Run] = field(default_factory=list)
    last_seen: float = field(default_factory=time.monotonic)

    @property
    def wants_work(self) -> bool:
        """Whether the model would soon be idle."""
        return self.start is None and len(self.runs) < SHARDS_AT_ONCE and not any(run.reading for run in self.runs)


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
        self._started_so_far = 0

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
            while waiting or any(replica.runs for replica in self._replicas):
                yield from self._match_size(len(waiting))
                self._hand_out(waiting)
                for replica, run in self._changed():
                    if replica in self._replicas:  # an event before may have shown that it died
                        yield from self._advance(replica, run, waiting, attempts)
                yield from self._kill_silent(waiting, attempts)
                if self._ever_ready < needed and time.monotonic() > deadline:
                    raise JobFailed(self._start_problem())
        finally:
            for replica in self._replicas:
                ray.kill(replica.actor)
            self._replicas = []

    def _match_size(self, waiting: int) -> Iterator[PoolEvent]:
        """Start replicas that are missing; end those that have no work left."""
        busy = sum(bool(replica.runs) for replica in self._replicas)
        wanted = min(self._settings.replicas_max, busy + waiting)
        for replica in [r for r in self._replicas if not r.runs][max(0, wanted - busy) :]:
            self._replicas.remove(replica)
            ray.kill(replica.actor)
            yield PoolEvent(replica_ended=True, replica=replica.number)
        while len(self._replicas) < wanted:
            actor_class = ray.remote(ReplicaActor)
            actor = actor_class.options(
                num_cpus=self._settings.cpus_per_replica,
                num_gpus=self._gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=SHARDS_AT_ONCE,
            ).remote(self._order)
            self._replicas.append(_Replica(self._started_so_far, actor, actor.ready.remote()))
            self._started_so_far += 1

    def _hand_out(self, waiting: deque[Task]) -> None:
        # Idle replicas first: a second shard for a busy one is worth less than a first one.
        for replica in sorted(self._replicas, key=lambda replica: len(replica.runs)):
            if replica.wants_work and waiting:
                task = waiting.popleft()
                stream = replica.actor.run_shard.options(num_returns="streaming").remote(task)
                replica.runs.append(_Run(task, stream))
                replica.last_seen = time.monotonic()

    def _changed(self) -> list[tuple[_Replica, _Run | None]]:
        pending: dict[Any, tuple[_Replica, _Run | None]] = {}
        for replica in self._replicas:
            if replica.start is not None:
                pending[replica.start] = (replica, None)
            pending.update({run.stream: (replica, run) for run in replica.runs})
        if not pending:
            time.sleep(POLL_S)
            return []
        # The first to have news ends the wait: a replica that is done reading must not wait for the others' parts.
        first, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S, fetch_local=False)
        if not first:
            return []
        changed, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0, fetch_local=False)
        return [pending[reference] for reference in changed]

    def _advance(
        self, replica: _Replica, run: _Run | None, waiting: deque[Task], attempts: dict[str, int]
    ) -> Iterator[PoolEvent]:
        replica.last_seen = time.monotonic()
        if run is None:
            yield from self._started(replica)
            return
        try:
            report = ray.get(next(run.stream))
            if isinstance(report, InputRead):
                run.reading = False
            else:
                yield PoolEvent(report=report, replica=replica.number)
        except StopIteration:
            replica.runs.remove(run)
            yield PoolEvent(shard_done=run.task, replica=replica.number)
        except RayTaskError as error:  # the actor lives; the shard raised
            replica.runs.remove(run)
            yield from self._attempt_failed(run.task, waiting, attempts, in_one_line(error))
            if not isinstance(error.cause, TrioRayError):
                # A device that is lost, or memory: it would fail at every shard, sooner than others are done with one.
                ray.kill(replica.actor)
                yield from self._lost(replica, waiting, attempts, in_one_line(error), innocent=True)
        except RayError as error:
            # A spot machine that was taken back is no shard's doing.
            innocent = bool(getattr(error, "preempted", False))
            yield from self._lost(replica, waiting, attempts, in_one_line(error), innocent)

    def _started(self, replica: _Replica) -> Iterator[PoolEvent]:
        try:
            where = ray.get(replica.start)
        except RayError as error:
            self._replicas.remove(replica)
            self._failed_starts += not getattr(error, "preempted", False)
            yield PoolEvent(replica_lost=in_one_line(error), replica=replica.number)
            if self._failed_starts >= MAX_FAILED_STARTS and not any(other.start is None for other in self._replicas):
                raise JobFailed(f"{MAX_FAILED_STARTS} replicas in a row failed to load: {in_one_line(error)}") from None
            return
        replica.start = None
        self._failed_starts = 0
        self._ever_ready += 1
        yield PoolEvent(replica_ready=where, replica=replica.number)

    def _lost(
        self, replica: _Replica, waiting: deque[Task], attempts: dict[str, int], why: str, innocent: bool = False
    ) -> Iterator[PoolEvent]:
        """A replica is gone. The shard that its model was at is to blame; one that was only being stored is not."""
        self._replicas.remove(replica)
        yield PoolEvent(replica_lost=why, replica=replica.number)
        reading = [run for run in replica.runs if run.reading]
        for run in replica.runs:
            if innocent or (reading and run not in reading):
                waiting.appendleft(run.task)
            else:
                yield from self._attempt_failed(run.task, waiting, attempts, f"its replica died: {why}")

    def _attempt_failed(
        self, task: Task, waiting: deque[Task], attempts: dict[str, int], why: str
    ) -> Iterator[PoolEvent]:
        attempts[task.shard.name] = attempts.get(task.shard.name, 0) + 1
        if attempts[task.shard.name] >= self._settings.shard_attempts:
            yield PoolEvent(shard_failed=(task, attempts[task.shard.name], why))
        else:
            waiting.append(task)  # last, so that what is sound is done before it kills again

    def _kill_silent(self, waiting: deque[Task], attempts: dict[str, int]) -> Iterator[PoolEvent]:
        limit = self._settings.shard_timeout_s
        for replica in list(self._replicas):
            if limit is not None and replica.runs and time.monotonic() - replica.last_seen > limit:
                ray.kill(replica.actor)
                yield from self._lost(replica, waiting, attempts, f"no part was done for {limit:g} s")

    def _start_problem(self) -> str:
        settings, cluster = self._settings, ray.cluster_resources()
        return (
            f"{self._ever_ready} of at least {settings.replicas_min} replicas started in "
            f"{settings.start_timeout_s:g} s; each wants {settings.cpus_per_replica:g} CPUs and {self._gpus:g} GPUs, "
            f"and the cluster has {cluster.get('CPU', 0):g} and {cluster.get('GPU', 0):g}: see "
            "pipeline.cpus_per_replica, pipeline.gpus_per_replica and pipeline.start_timeout_s"
        )
