"""Choosing what a new cache's settings leave open: in this process, or as a Ray task with a replica's resources."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from trio_ray.calibration.auto import calibrate_for
from trio_ray.calibration.choice import FittedCodec
from trio_ray.calibration.corpus import draw_samples
from trio_ray.calibration.schedule_search import CANDIDATES, FoundSchedule, search_schedule
from trio_ray.cluster.session import in_one_line
from trio_ray.config import JobConfig, ReplicasConfig
from trio_ray.errors import JobFailed, TrioRayError
from trio_ray.model.replica import Replica
from trio_ray.precompute.codec_choice import CodecChoice
from trio_ray.precompute.open_settings import CalibrationSpec, Chosen
from trio_ray.store.bases import store_basis
from trio_ray.store.opening import open_store

ATTEMPTS = 3
"""Times that calibration may be killed: its machine may have been taken back, or its memory be too small."""

INSTEAD = (
    "give the settings instead: --set cache.codec=int4, or raw, or a basis made by `trio-ray calibrate`, and "
    "method.prune_points and method.weights"
)

SCHEDULE_SAMPLES = 200
"""Samples that a schedule is searched on, those held back among them."""


STEP_PAUSE_S = 1.0
"""Steps come from the task no more often than this, but for those that begin something new."""


@dataclass(frozen=True)
class CalibrationStep:
    """What a calibration is at: `done` of `total` pieces of `unit`. With 0 a step begins."""

    what: str
    done: int
    total: int
    unit: str = "samples"


OnStep = Callable[[CalibrationStep], None]


def calibrate_here(spec: CalibrationSpec, on_step: OnStep = lambda step: None) -> Chosen:
    """Load the model and choose: the schedule first, then the codec of the prefixes that it makes. A `Calibrator`."""
    config, schedule = spec.config, None
    replica = Replica.load(config.model, config.prompt)
    if config.method.schedule == "auto":
        schedule = _search(config, replica, on_step)
        config = config.model_copy(update={"method": schedule.method})
    if not config.cache.chooses_codec:
        return Chosen(schedule=schedule)
    if config.cache.scope == "image":
        return Chosen(CodecChoice.of_image_scope(), schedule)
    made = calibrate_for(config, replica, spec.model, lambda *step: on_step(CalibrationStep(*step)))
    if isinstance(made, FittedCodec):
        store_basis(open_store(config.output, config.s3), made.basis)
    return Chosen(CodecChoice.of(made), schedule)


def _search(config: JobConfig, replica: Replica, on_step: OnStep) -> FoundSchedule:
    on_step(CalibrationStep("drawing samples", 0, SCHEDULE_SAMPLES))
    samples = draw_samples(config, replica, SCHEDULE_SAMPLES)
    what = "searching a schedule"
    on_step(CalibrationStep(what, 0, CANDIDATES, "schedules"))
    return search_schedule(
        replica,
        samples,
        config.method,
        scope=config.cache.scope,
        batch_rows=config.pipeline.batch_rows,
        on_candidate=lambda done: on_step(CalibrationStep(what, done, CANDIDATES, "schedules")),
    )


def calibrate_on_ray(spec: CalibrationSpec, gpus: float, on_step: OnStep = lambda step: None) -> Chosen:
    """The same elsewhere on the cluster, given the resources of a replica; the basis does not come back by Ray.

    `on_step` is told how far it is, about once a second.

    Raises:
        ConfigError: the model cannot be loaded there as it is configured.
        JobFailed: there is no room for it, it was killed `ATTEMPTS` times, or failed.
    """
    why = ""
    for _ in range(ATTEMPTS):
        try:
            return _attempt(spec, spec.config.replicas, gpus, on_step)
        except RayTaskError as error:
            if isinstance(error.cause, TrioRayError):
                raise error.cause from None
            raise JobFailed(
                f"what the settings leave open could not be chosen: {in_one_line(error)}; {INSTEAD}"
            ) from None
        except RayError as error:
            why = in_one_line(error)
    raise JobFailed(f"choosing what the settings leave open was killed {ATTEMPTS} times, at last: {why}; {INSTEAD}")


def _attempt(spec: CalibrationSpec, settings: ReplicasConfig, gpus: float, on_step: OnStep) -> Chosen:
    # One call a process, so that the replicas find its memory free.
    task = ray.remote(max_calls=1)(_calibrate).options(
        num_cpus=settings.cpus, num_gpus=gpus, max_retries=0, num_returns="streaming"
    )
    answers = task.remote(spec)
    started, _ = ray.wait([answers], timeout=settings.start_timeout_s, fetch_local=False)
    if not started:
        ray.cancel(answers)
        raise JobFailed(
            f"choosing what the settings leave open wants {settings.cpus:g} CPUs and {gpus:g} GPUs like a replica, "
            f"and the cluster had no room for it in {settings.start_timeout_s:g} s (replicas.start_timeout_s)"
        )
    ray.get(next(answers))
    for answer in answers:
        news = ray.get(answer)
        if isinstance(news, Chosen):
            return news
        on_step(news)
    raise AssertionError("a calibration ends with a choice or raises")


def _calibrate(spec: CalibrationSpec) -> Iterator[str | CalibrationStep | Chosen]:
    """Says where it runs as soon as it does, then how far it is, at last what it chose."""
    yield socket.gethostname()
    torch.set_num_threads(spec.config.replicas.torch_threads)
    steps: SimpleQueue[CalibrationStep | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        choice = thread.submit(calibrate_here, spec, steps.put)
        choice.add_done_callback(lambda _: steps.put(None))
        told = 0.0
        while (step := steps.get()) is not None:
            if step.done == 0 or time.monotonic() - told >= STEP_PAUSE_S:
                told = time.monotonic()
                yield step
        yield choice.result()
