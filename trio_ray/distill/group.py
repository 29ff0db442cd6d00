"""The workers of a distillation as Ray actors."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import distributed

from trio_ray.cluster.session import gpus_per_replica, in_one_line, ray_session
from trio_ray.distill.training import StepReport
from trio_ray.distill.worker import Worker, WorkOrder
from trio_ray.errors import JobFailed, TrioRayError

POLL_S = 2.0


class WorkerActor:
    """Hosts a worker. Samples and gradients never pass through Ray: only small reports do."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._latest: StepReport | None = None

    def address(self) -> str:
        """Where this actor, as the first of a group, can be met by the others."""
        with closing(socket.socket()) as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def latest(self) -> StepReport | None:
        """What the latest step did; answered while `run` is under way."""
        return self._latest

    def run(self, order: WorkOrder, address: str) -> dict[str, Any]:
        """Train, as one of a group if there are several. Returns as `Worker.run` does."""
        if order.world_size == 1:
            return Worker(order).run(self._note)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, init_method=address, rank=order.rank, world_size=order.world_size)
        try:
            return Worker(order).run(self._note)
        finally:
            distributed.destroy_process_group()

    def _note(self, report: StepReport) -> None:
        self._latest = report


def run_group(order: WorkOrder, on_step: Callable[[StepReport], None]) -> dict[str, Any]:
    """Run as many workers as the configuration wants; returns the first one's metrics.

    Raises:
        JobFailed: they cannot all be started, or one of them died.
        TrioRayError: what a worker raised.
    """
    workers = order.config.workers
    with ray_session(workers.count * workers.cpus):
        options = {
            "num_cpus": workers.cpus,
            "num_gpus": gpus_per_replica(workers.gpus),
            "max_restarts": 0,
            "max_concurrency": 2,
        }
        actors = [
            ray.remote(WorkerActor).options(**options).remote(max(1, math.floor(workers.cpus)))
            for _ in range(workers.count)
        ]
        try:
            address = _address(actors, order)
            runs = [
                actor.run.remote(replace(order, rank=rank, world_size=workers.count), address)
                for rank, actor in enumerate(actors)
            ]
            return _results(actors[0], runs, on_step)
        finally:
            for actor in actors:
                ray.kill(actor)


def _address(actors: list[Any], order: WorkOrder) -> str:
    """The first worker's address, once all have started."""
    asked = [actor.address.remote() for actor in actors]
    workers = order.config.workers
    try:
        addresses: list[str] = ray.get(asked, timeout=workers.start_timeout_s)
    except ray.exceptions.GetTimeoutError:
        cluster = ray.cluster_resources()
        raise JobFailed(
            f"{workers.count} workers did not start in {workers.start_timeout_s:g} s; each wants {workers.cpus:g} CPUs "
            f"and {gpus_per_replica(workers.gpus):g} GPUs, and the cluster has {cluster.get('CPU', 0):g} and "
            f"{cluster.get('GPU', 0):g}: see workers.cpus, workers.gpus and workers.start_timeout_s"
        ) from None
    except RayError as error:
        raise JobFailed(f"a worker did not start: {in_one_line(error)}") from None
    return addresses[0]


def _results(first: Any, runs: list[Any], on_step: Callable[[StepReport], None]) -> dict[str, Any]:
    waiting = list(runs)
    shown = 0
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=POLL_S)
            ray.get(done)  # the first failure ends all: the others would wait for the lost one's gradients
            report: StepReport | None = ray.get(first.latest.remote())
            if report is not None and report.step > shown:
                shown = report.step
                on_step(report)
        metrics: list[dict[str, Any]] = ray.get(runs)
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, TrioRayError):
            raise cause from None
        raise JobFailed(
            f"a worker failed: {in_one_line(error)}; the same command goes on from the last checkpoint"
        ) from None
    return {**metrics[0], "skipped": sum(part["skipped"] for part in metrics)}
