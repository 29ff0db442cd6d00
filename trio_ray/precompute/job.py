"""One run of the job: plan, work, record what could not be done, summarise."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field

from trio_ray.cluster.metrics import JobMetrics
from trio_ray.cluster.pool import PoolEvent, ReplicaPool
from trio_ray.cluster.progress import Progress
from trio_ray.cluster.session import cluster_given, gpus_per_replica, ray_session
from trio_ray.config import JobConfig
from trio_ray.errors import JobFailed, StoreError
from trio_ray.precompute.calibration_task import calibrate_on_ray
from trio_ray.precompute.codec_choice import CalibrationOrder, CodecChoice
from trio_ray.precompute.plan import LISTING_THREADS, JobPlan, plan_job
from trio_ray.precompute.replica_actor import ReplicaOrder
from trio_ray.precompute.rows import shard_input
from trio_ray.source.sample import Shard
from trio_ray.store.commit_index import update_index
from trio_ray.store.commits import (
    FailureRecord,
    RunRecord,
    clear_failure,
    read_failures,
    write_failure,
)
from trio_ray.store.dataset import SCHEMA_VERSION, package_version, utc_now

SAMPLES_BEFORE_LIMIT = 100
"""Samples seen before the share of bad ones can stop the job: the first few say little."""


log = logging.getLogger(__name__)


@dataclass
class JobSummary:
    """What a run did.

    `codec` says why the cache has its codec, where this run has chosen it. `failed` maps input that is not in the cache
    (a URI, and rows of a split file) to the reason.
    """

    output: str
    run_id: str
    shards: int
    shards_before: int
    stored: int = 0
    quarantined: int = 0
    parts: int = 0
    bytes: int = 0
    seconds: float = 0.0
    codec: str | None = None
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all input is in the cache (or in quarantine)."""
        return not self.failed

    def __str__(self) -> str:
        """A few lines for the end of a run."""
        rate = (self.stored + self.quarantined) / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.output}: {self.stored} samples stored, {self.quarantined} quarantined, in {self.parts} parts, "
            f"{self.bytes:,} bytes, {self.seconds:.1f} s ({rate:.1f} samples/s)",
            f"shards: {self.shards}, of which {self.shards_before} were complete before",
        ]
        if self.codec is not None:
            lines.append(f"codec: {self.codec}")
        if self.shards == self.shards_before:
            lines.append("nothing was left to do")
        lines += [f"FAILED {uri}: {reason}" for uri, reason in self.failed.items()]
        return "\n".join(lines)


def run_job(config: JobConfig, progress: Progress | None = None) -> JobSummary:
    """Run a precompute job to its end; the same call again resumes it.

    Args:
        config: the job.
        progress: shows what happens; nothing is shown without it.

    Raises:
        ConfigError: it cannot be run; nothing was loaded.
        IdentityMismatch: the output is a cache of other settings.
        JobFailed: the codec cannot be calibrated, no replica can be started, or too many samples are bad. What was
            committed stays.
    """
    started = time.monotonic()
    cpus = config.pipeline.replicas_max * config.pipeline.cpus_per_replica
    with ExitStack() as session:
        # On a cluster, whether there are GPUs decides what is stored, so Ray is asked first; alone, this machine is.
        if cluster_given():
            session.enter_context(ray_session(cpus))
        with_gpu = gpus_per_replica(config.pipeline.gpus_per_replica) > 0

        def calibrate(order: CalibrationOrder) -> CodecChoice:
            if progress is not None:
                progress.say("cache.codec auto: calibrating a basis on samples of the input")
            session.enter_context(ray_session(cpus))
            return calibrate_on_ray(order, gpus_per_replica(config.pipeline.gpus_per_replica))

        plan = plan_job(config, with_gpu, calibrate)
        summary = JobSummary(config.output, plan.run_id, plan.shards, len(plan.complete), codec=plan.codec_choice)
        if progress is not None and plan.codec_choice is not None:
            progress.say(f"cache.codec auto: {plan.codec_choice}")
        run = RunRecord(plan.run_id, socket.gethostname(), utc_now(), "", package_version())
        _clear_settled(plan)
        for shard, reason in plan.lost:
            summary.failed[_label(shard)] = reason
            _record_failure(plan, run, shard, 1, reason)
        if plan.tasks:
            session.enter_context(ray_session(cpus))
            _work(config, plan, run, summary, progress, started)
        with _told("there is no index of the commit records"):
            update_index(plan.store, LISTING_THREADS)
    summary.seconds = time.monotonic() - started
    return summary


def _work(
    config: JobConfig,
    plan: JobPlan,
    run: RunRecord,
    summary: JobSummary,
    progress: Progress | None,
    started: float,
) -> None:
    # The cache's identity names the arithmetic, so a replica must not choose another on the device that it happens on.
    model = config.model.model_copy(update={"dtype": str(plan.dtype).removeprefix("torch.")})
    order = ReplicaOrder(
        config.model_copy(update={"model": model}),
        plan.schedule,
        plan.dataset,
        plan.run_id,
        config.pipeline.torch_threads,
    )
    pool = ReplicaPool(order, config.pipeline, gpus_per_replica(config.pipeline.gpus_per_replica))
    # Two runs on one cache begin at different shards, so that they rarely do the same work.
    turn = int(plan.run_id, 16) % len(plan.tasks)
    metrics = JobMetrics(config.output, len(plan.tasks), len(plan.lost))
    done: set[str] = set()
    with metrics, closing(pool.run(plan.tasks[turn:] + plan.tasks[:turn])) as events:
        for event in events:
            _account(event, summary)
            metrics.update(event)
            if event.shard_done:
                done.add(event.shard_done.shard.name)
            if event.shard_failed:
                task, attempts, why = event.shard_failed
                with _told("that a shard was given up is not recorded"):
                    _record_failure(plan, run, task.shard, attempts, why)
            summary.seconds = time.monotonic() - started
            if progress is not None:
                progress.update(event, summary)
            _check_limit(config, summary)
    with _told("failures of shards that are done now are still recorded"):
        for name in done.intersection(read_failures(plan.store)):
            clear_failure(plan.store, name)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The cache is whole without the work inside: if the store fails at it, that is logged, and the job goes on."""
    try:
        yield
    except StoreError as error:
        log.warning("%s: %s", what, error)


def _account(event: PoolEvent, summary: JobSummary) -> None:
    if event.report is not None and event.report.stored + event.report.quarantined:
        summary.parts += 1
        summary.stored += event.report.stored
        summary.quarantined += event.report.quarantined
        summary.bytes += event.report.bytes
    if event.shard_failed is not None:
        task, attempts, why = event.shard_failed
        summary.failed[_label(task.shard)] = f"given up after {attempts} attempts: {why}"


def _check_limit(config: JobConfig, summary: JobSummary) -> None:
    seen = summary.stored + summary.quarantined
    limit = config.pipeline.max_bad_fraction
    if seen >= SAMPLES_BEFORE_LIMIT and summary.quarantined > limit * seen:
        raise JobFailed(
            f"{summary.quarantined} of {seen} samples are bad, more than pipeline.max_bad_fraction = {limit:g}; "
            f"look at the quarantine (trio-ray inspect {summary.output}), then mend the input or raise the limit"
        )


def _label(shard: Shard) -> str:
    """What a person knows a shard by."""
    return shard.uri if shard.rows is None else f"{shard.uri} rows {shard.rows[0]}..{shard.rows[1] - 1}"


def _clear_settled(plan: JobPlan) -> None:
    """Forget failures of shards that are complete, and of files that could not be read and now can."""
    complete = {shard.name for shard in plan.complete}
    planned = complete | {task.shard.name for task in plan.tasks} | {shard.name for shard, _ in plan.lost}
    readable = {shard.uri for shard in plan.complete} | {task.shard.uri for task in plan.tasks}
    for name, record in read_failures(plan.store).items():
        if name in complete or (record.shard.uri in readable and name not in planned):
            clear_failure(plan.store, name)


def _record_failure(plan: JobPlan, run: RunRecord, shard: Shard, attempts: int, why: str) -> None:
    ended = RunRecord(run.run_id, run.host, run.started, utc_now(), run.package_version)
    identity = plan.dataset.identity_hash
    write_failure(plan.store, FailureRecord(SCHEMA_VERSION, identity, shard_input(shard), attempts, why, ended))
