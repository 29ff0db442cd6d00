"""Chunks of questions over Ray actors, one model each; a dead actor's chunk is given to another one."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cluster.session import gpus_per_replica, in_one_line
from trio_ray.config import PromptConfig
from trio_ray.errors import JobFailed
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.decode import Decoded, PrefixDecoder
from trio_ray.evaluate.join import Task
from trio_ray.model.replica import Replica

POLL_S = 0.5
MAX_FAILED_STARTS = 3
"""Replicas in a row that may fail to load before the job gives up: the next would fail as well."""


class AnswerActor:
    """Hosts a model. Prefixes never pass through Ray: rows of the table come in and texts go out."""

    def __init__(self, config: EvaluateConfig) -> None:
        torch.set_num_threads(max(1, math.floor(config.replicas.cpus)))
        cache = PrunedCache(config.cache, config.s3)
        prompt = PromptConfig.model_validate(cache.dataset.identity["prompt"])
        self._decoder = PrefixDecoder(cache, Replica.load(config.model, prompt), config.answering)

    def ready(self) -> None:
        """Returns once the model is loaded."""

    def run(self, tasks: Sequence[Task]) -> Decoded:
        """Answer a chunk."""
        return self._decoder.run(tasks)


@dataclass(eq=False)
class _Chunk:
    number: int
    tasks: Sequence[Task]
    failures: int = 0


@dataclass
class AnswerPool:
    """Runs chunks on up to `config.replicas.count` actors."""

    config: EvaluateConfig
    _pending: dict[Any, tuple[Any, _Chunk | None]] = field(default_factory=dict)
    _started: bool = False
    _failed_starts: int = 0

    def run(self, chunks: Sequence[Sequence[Task]]) -> Generator[tuple[int, Decoded], None, None]:
        """(number, result) of each chunk, as they are done. Closing the generator ends the actors.

        Raises:
            JobFailed: no actor can be started, or a chunk failed `chunk_attempts` times.
        """
        waiting = deque(_Chunk(number, tasks) for number, tasks in enumerate(chunks))
        deadline = time.monotonic() + self.config.replicas.start_timeout_s
        try:
            while waiting or any(chunk for _, chunk in self._pending.values()):
                self._start_missing(len(waiting))
                done, _ = ray.wait(list(self._pending), timeout=POLL_S)
                for reference in done:
                    actor, chunk = self._pending.pop(reference)
                    result = self._outcome(reference, chunk, waiting)
                    if result is not None and waiting:
                        following = waiting.popleft()
                        self._pending[actor.run.remote(following.tasks)] = (actor, following)
                    else:
                        ray.kill(actor)
                    if isinstance(result, Decoded) and chunk is not None:
                        yield chunk.number, result
                if not self._started and time.monotonic() > deadline:
                    raise JobFailed(self._start_problem())
        finally:
            for actor, _ in self._pending.values():
                ray.kill(actor)
            self._pending.clear()

    def _start_missing(self, waiting: int) -> None:
        replicas = self.config.replicas
        busy = sum(chunk is not None for _, chunk in self._pending.values())
        while len(self._pending) < min(replicas.count, busy + waiting):
            options = {"num_cpus": replicas.cpus, "num_gpus": gpus_per_replica(replicas.gpus), "max_restarts": 0}
            actor = ray.remote(AnswerActor).options(**options).remote(self.config)
            self._pending[actor.ready.remote()] = (actor, None)

    def _outcome(self, reference: Any, chunk: _Chunk | None, waiting: deque[_Chunk]) -> Decoded | bool | None:
        """The chunk's result; True where the actor is free for (another) one; None where it is dead."""
        try:
            result = ray.get(reference)
        except RayError as error:
            if chunk is None:
                self._failed_starts += 1
                if self._failed_starts >= MAX_FAILED_STARTS:
                    raise JobFailed(
                        f"{MAX_FAILED_STARTS} replicas in a row failed to load: {in_one_line(error)}"
                    ) from None
                return None
            chunk.failures += 1
            if chunk.failures >= self.config.replicas.chunk_attempts:
                keys = f"{chunk.tasks[0].row['key']!r} .. {chunk.tasks[-1].row['key']!r}"
                raise JobFailed(
                    f"the questions {keys} failed {chunk.failures} times; the last: {in_one_line(error)}"
                ) from None
            waiting.append(chunk)
            return True if isinstance(error, RayTaskError) else None  # a task's error leaves its actor alive
        if chunk is None:
            self._started, self._failed_starts = True, 0
            return True
        return result

    def _start_problem(self) -> str:
        replicas, cluster = self.config.replicas, ray.cluster_resources()
        return (
            f"no replica started in {replicas.start_timeout_s:g} s; each wants {replicas.cpus:g} CPUs and "
            f"{gpus_per_replica(replicas.gpus):g} GPUs, and the cluster has {cluster.get('CPU', 0):g} and "
            f"{cluster.get('GPU', 0):g}: see replicas.cpus, replicas.gpus and replicas.start_timeout_s"
        )
