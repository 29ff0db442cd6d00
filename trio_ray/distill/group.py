"""The workers of a distillation as Ray actors: a gang, which is not a queue of work.

A pool (`cluster.pool`) gives independent pieces of work to whichever actor is free, and replaces one actor alone. Here
every step needs the gradients of all workers, so all must start before the first step, and if one is lost the others
would wait for it for ever: the whole gang is then started again, and goes on from the last checkpoint. What a gang
shares with a pool is the session, the actors' resources, how they are started, and the sentences of errors.
"""

from __future__ import annotations

import socket
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import distributed

from trio_ray.cluster.actors import ActorFactory, no_room
from trio_ray.cluster.progress import Phase, Progress
from trio_ray.cluster.session import in_one_line, ray_session
from trio_ray.distill.training import StepReport
from trio_ray.distill.worker import Worker, WorkerSpec
from trio_ray.errors import JobFailed, TrioRayError

POLL_S = 2.0


class WorkerActor:
    """Hosts a worker. Samples and gradients never pass through Ray: only small reports do."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._latest: StepReport | None = None

    def address(self) -> str:
        """Where the others can meet this actor, if it is the first of the gang."""
        with closing(socket.socket()) as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def latest(self) -> StepReport | None:
        """What the latest step did; can be asked while `run` is under way."""
        return self._latest

    def run(self, spec: WorkerSpec, address: str) -> dict[str, Any]:
        """Train, together with the others if there are several. Returns what `Worker.run` returns."""
        if spec.world_size == 1:
            return Worker(spec).run(self._note)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, init_method=address, rank=spec.rank, world_size=spec.world_size)
        try:
            return Worker(spec).run(self._note)
        finally:
            distributed.destroy_process_group()

    def _note(self, report: StepReport) -> None:
        self._latest = report


class _GangLost(Exception):
    """A worker died or fell silent; the message says which and why."""


def run_group(spec: WorkerSpec, progress: Progress) -> dict[str, Any]:
    """Run as many workers as the configuration wants; returns the metrics of the first one.

    Raises:
        JobFailed: they cannot all be started, or workers were lost `replicas.attempts` times.
        TrioRayError: what a worker raised.
    """
    replicas = spec.config.replicas
    with ray_session(replicas.max * replicas.cpus):
        for attempt in range(1, replicas.attempts + 1):
            try:
                return _run_once(spec, progress)
            except _GangLost as lost:
                why = str(lost)
                if attempt < replicas.attempts:
                    progress.say(f"{why}; the workers start again from the last checkpoint")
    raise JobFailed(f"{why}; this was attempt {replicas.attempts}, the same command goes on from the last checkpoint")


def _run_once(spec: WorkerSpec, progress: Progress) -> dict[str, Any]:
    replicas = spec.config.replicas
    progress.begin(Phase("starting workers"))
    factory = ActorFactory(WorkerActor, (replicas.torch_threads,), calls_at_once=2)
    actors = [factory.start(replicas) for _ in range(replicas.max)]
    try:
        address = _address(actors, spec)
        progress.begin(Phase("training", "steps", spec.config.training.steps, rate_of="steps"))
        runs = [
            actor.run.remote(replace(spec, rank=rank, world_size=replicas.max), address)
            for rank, actor in enumerate(actors)
        ]
        return _results(actors[0], runs, progress, replicas.silence_limit_s)
    finally:
        for actor in actors:
            ray.kill(actor)


def _address(actors: list[Any], spec: WorkerSpec) -> str:
    """The address of the first worker, once all have started."""
    asked = [actor.address.remote() for actor in actors]
    replicas = spec.config.replicas
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=replicas.start_timeout_s)
    if len(ready) < len(asked):
        raise JobFailed(no_room(replicas, len(ready), len(asked)))
    try:
        addresses: list[str] = ray.get(asked)
    except RayError as error:
        raise _GangLost(f"a worker did not start: {in_one_line(error)}") from None
    return addresses[0]


def _results(first: Any, runs: list[Any], progress: Progress, silence_limit_s: float) -> dict[str, Any]:
    """The results of all runs. The first failure ends all: the others would wait for the lost one's gradients."""
    waiting = list(runs)
    shown, last_seen = 0, time.monotonic()
    asked: Any = None
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=POLL_S)
            ray.get(done)
            asked = asked or first.latest.remote()
            answered, _ = ray.wait([asked], timeout=POLL_S)  # a worker that hangs does not answer
            if answered:
                report: StepReport | None = ray.get(asked)
                asked = None
                if report is not None and report.step > shown:
                    shown, last_seen = report.step, time.monotonic()
                    note = f"truth {report.truth:.4f}, teacher {report.teacher:.4f}"
                    progress.update({"steps": report.step}, note)
            if done:
                last_seen = time.monotonic()
            if time.monotonic() - last_seen > silence_limit_s:
                raise _GangLost(f"the workers took no step for {silence_limit_s:g} s (replicas.silence_limit_s)")
        metrics: list[dict[str, Any]] = ray.get(runs)
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, TrioRayError):
            raise cause from None
        raise _GangLost(f"a worker failed: {in_one_line(error)}") from None
    return {**metrics[0], "skipped": sum(part["skipped"] for part in metrics)}
