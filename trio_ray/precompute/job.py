"""One run of the job: plan, work, record what could not be done, summarise."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeGuard

from trio_ray.cluster.actors import ActorFactory
from trio_ray.cluster.events import (
    ActorDownloads,
    ActorEnded,
    ActorLost,
    ActorReady,
    PoolEvent,
    Report,
    WorkDone,
    WorkFailed,
)
from trio_ray.cluster.pool import ActorPool
from trio_ray.cluster.progress import NoProgress, Phase, Progress, size_text
from trio_ray.cluster.session import cluster_given, gpus_per_replica, ray_session
from trio_ray.config import JobConfig
from trio_ray.errors import JobFailed, StoreError
from trio_ray.precompute.calibration_task import CalibrationStep, calibrate_on_ray
from trio_ray.precompute.metrics import JobMetrics
from trio_ray.precompute.open_settings import CalibrationSpec, Chosen
from trio_ray.precompute.outlook import Outlook, ShardAdvanced
from trio_ray.precompute.plan import LISTING_THREADS, JobPlan, Task, plan_job
from trio_ray.precompute.replica_actor import ReplicaActor, ReplicaSpec
from trio_ray.precompute.rows import shard_input
from trio_ray.precompute.shard_run import SHARDS_AT_ONCE
from trio_ray.precompute.shard_writer import PartReport
from trio_ray.precompute.summary import JobSummary
from trio_ray.precompute.verdict import all_bad_so_far, judge
from trio_ray.source.sample import Shard
from trio_ray.store.catalog_writer import CatalogWriter, complete_catalog
from trio_ray.store.commit_table import CommitTable, read_commits
from trio_ray.store.commits import RunRecord
from trio_ray.store.dataset import package_version, utc_now
from trio_ray.store.failures import FailureLog, FailureRecord

log = logging.getLogger(__name__)


Observer = Callable[[PoolEvent[Task], JobSummary], None]
"""Is called with every event of the pool, and with the summary so far."""


def run_job(config: JobConfig, progress: Progress | None = None, observer: Observer | None = None) -> JobSummary:
    """Run a precompute job to its end; the same call again resumes it.

    Args:
        config: the job.
        progress: shows what happens; nothing is shown without it.
        observer: is called with every event.

    Raises:
        ConfigError: it cannot be run; nothing was loaded.
        IdentityMismatch: the output is a cache of other settings.
        JobFailed: the codec cannot be calibrated, no replica can be started, or too many samples are bad. What was
            committed stays.
    """
    started = time.monotonic()
    config = config.as_run
    progress = progress or NoProgress()
    replicas = config.replicas
    with ExitStack() as session:
        progress.begin(Phase("checking"))
        # On a cluster, whether there are GPUs decides what is stored, so Ray is asked first; alone, this machine is.
        if cluster_given():
            session.enter_context(ray_session(replicas.max * replicas.cpus))

        def calibrate(spec: CalibrationSpec) -> Chosen:
            progress.begin(Phase("starting Ray"))
            session.enter_context(ray_session(replicas.max * replicas.cpus))
            progress.begin(Phase("choosing what the settings leave open: loading the model"))

            def show(step: CalibrationStep) -> None:
                if step.done == 0:
                    progress.begin(Phase(step.what, step.unit, step.total))
                progress.update({step.unit: step.done})

            return calibrate_on_ray(spec, gpus_per_replica(replicas.gpus), show)

        plan = plan_job(config, gpus_per_replica(replicas.gpus) > 0, calibrate)
        summary = JobSummary(config.output, plan.run_id, plan.shards, len(plan.complete), chosen=plan.chosen)
        for name, why in plan.chosen.items():
            progress.say(f"{name} auto: {why}")
        run = RunRecord(plan.run_id, socket.gethostname(), utc_now(), "", package_version())
        failures = FailureLog(plan.store, plan.run_id)
        failures.take_over(_mended_by(plan))
        summary.failed |= {_label(shard): reason for shard, reason in plan.lost}
        failures.add(*(_failure(plan, run, shard, 1, reason) for shard, reason in plan.lost))
        failures.write()
        if plan.tasks:
            progress.begin(Phase("starting Ray"))
            session.enter_context(ray_session(replicas.max * replicas.cpus))
            progress.begin(Phase("loading the model on replicas"))
            _Work(config, plan, run, failures, summary, progress, observer).do(started)
        # A run without work has read all records already.
        commits = read_commits(plan.store, LISTING_THREADS) if plan.tasks else plan.commits
        with _logged("the catalog lacks parts, whose records are read one by one"):
            complete_catalog(plan.store, commits, LISTING_THREADS)
        summary.seconds = time.monotonic() - started
        _judge(config, plan, commits, summary, progress)
    return summary


def _judge(config: JobConfig, plan: JobPlan, commits: CommitTable, summary: JobSummary, progress: Progress) -> None:
    """Hold the whole cache against the limit of bad samples, and name the input that was damaged."""
    shards = {shard.name: shard for shard in (*plan.complete, *(task.shard for task in plan.tasks))}
    verdict = judge(commits, shards)
    summary.cache_stored, summary.cache_quarantined = verdict.stored, verdict.quarantined
    for name, damage in verdict.damaged.items():
        summary.failed[_label(shards[name])] = (
            f"is damaged ({damage}); the samples before the damage are in the cache. Replace the file, then run again "
            "with --redo-damaged"
        )
    try:
        verdict.check(config.pipeline.max_bad_fraction, config.output)
    except JobFailed:
        progress.say(str(summary))  # else the reasons and the damaged files would stay untold
        raise


@dataclass
class _Work:
    """The shards of a plan that are left, on replicas."""

    config: JobConfig
    plan: JobPlan
    run: RunRecord
    failures: FailureLog
    summary: JobSummary
    progress: Progress
    observer: Observer | None
    _ready: set[int] = field(default_factory=set)
    _finished: int = 0
    _began: float | None = None
    _warned: bool = False

    @cached_property
    def _outlook(self) -> Outlook:
        plan = self.plan
        left = [task.shard for task in plan.tasks]
        return Outlook([*left, *plan.complete, *(shard for shard, _ in plan.lost)], left)

    def do(self, started: float) -> None:
        """Until all of them are done or given up."""
        config, plan, summary = self.config, self.plan, self.summary
        spec = ReplicaSpec(config.model_copy(update={"model": plan.model}).absolute(), plan.dataset, plan.run_id)
        factory = ActorFactory(ReplicaActor, (spec,), calls_at_once=SHARDS_AT_ONCE)
        pool = ActorPool[Task](factory, config.replicas, overlap=SHARDS_AT_ONCE, is_progress=_is_committed)
        # Two runs on one cache begin at different shards, so that they rarely do the same work.
        turn = int(plan.run_id, 16) % len(plan.tasks)
        done: set[str] = set()
        metrics = JobMetrics(config.output, len(plan.tasks), len(plan.lost))
        catalog = CatalogWriter(plan.store, LISTING_THREADS)
        try:
            with metrics, catalog, closing(pool.run(plan.tasks[turn:] + plan.tasks[:turn])) as events:
                for event in events:
                    metrics.update(event)
                    if isinstance(event, Report) and _is_committed(part := event.content):
                        catalog.committed((part.shard, part.part))
                    if isinstance(event, WorkDone):
                        done.add(event.work.shard.name)
                    self._account(event)
                    summary.seconds = time.monotonic() - started
                    self._show(event)
                    if self.observer is not None:
                        self.observer(event, summary)
        finally:
            with _logged("failures are not recorded, or those of shards that are done now still are"):
                self.failures.take_over(lambda failure: failure.shard.name in done)

    def _account(self, event: PoolEvent[Task]) -> None:
        summary, outlook = self.summary, self._outlook
        if isinstance(event, Report) and isinstance(event.content, ShardAdvanced):
            outlook.advanced(event.actor, event.content)
        elif isinstance(event, ActorLost):
            outlook.lost(event.actor)
        elif isinstance(event, WorkDone | WorkFailed):
            outlook.ended(event.work.shard.name)
        if isinstance(event, Report) and isinstance(part := event.content, PartReport):
            summary.parts += part.committed
            summary.stored += part.stored
            summary.quarantined += part.quarantined
            summary.passed_over += part.passed_over
            for reason, count in part.reasons.items():
                summary.reasons[reason] = summary.reasons.get(reason, 0) + count
            summary.bytes += part.bytes
            summary.without_targets += part.without_targets
        elif isinstance(event, WorkFailed):
            shard = event.work.shard
            summary.failed[_label(shard)] = (
                f"given up after {event.attempts} attempts: {event.why}; the next run tries it again"
            )
            with _logged("that a shard was given up is not recorded"):
                self.failures.add(_failure(self.plan, self.run, shard, event.attempts, event.why))

    def _show(self, event: PoolEvent[Task]) -> None:
        progress, summary = self.progress, self.summary
        if isinstance(event, ActorDownloads):
            if self._began is None:
                progress.update({}, str(event))
            return
        if isinstance(event, ActorReady):
            if self._began is None:
                before = summary.shards_before + len(self.plan.lost)
                progress.begin(Phase("running", "shards", summary.shards, before, rate_of="samples"))
                self._began = time.monotonic()
            self._ready.add(event.actor)
            progress.say(f"replica {event.actor} ready: {event.where}")
        elif isinstance(event, ActorLost):
            progress.say(f"replica {event.actor} lost: {event.why}")
            self._ready.discard(event.actor)  # one that never loaded its model was not counted
        elif isinstance(event, ActorEnded):
            self._ready.discard(event.actor)
        elif isinstance(event, WorkFailed):
            progress.say(f"shard failed: {_label(event.work.shard)}: {event.why}")
        self._finished += isinstance(event, WorkDone | WorkFailed)
        if self._began is not None:
            done = summary.stored + summary.quarantined + self._outlook.uncommitted
            counts = {"shards": self._finished, "samples": done, "bad": summary.quarantined}
            counts["replicas"] = len(self._ready)
            progress.update(counts, self._note(time.monotonic() - self._began), self._outlook.share)
        if summary.stored == 0 and not self._warned and (warning := all_bad_so_far(summary.reasons)):
            progress.say(warning)
            self._warned = True

    def _note(self, seconds: float) -> str:
        """The rate of bytes, what has been stored and will be, and failures."""
        summary, parts = self.summary, []
        if summary.bytes:
            expected = self._outlook.expected_bytes(summary.bytes, summary.stored + summary.quarantined)
            of = f" of about {size_text(expected)}" if expected is not None else ""
            parts += [f"{size_text(summary.bytes)}{of} stored", f"{summary.bytes / 1e6 / max(seconds, 1e-3):.1f} MB/s"]
        if summary.failed:
            parts.append(f"{len(summary.failed)} shards FAILED")
        return ", ".join(parts)


def _is_committed(report: object) -> TypeGuard[PartReport]:
    """Whether a replica reports a part that it has committed."""
    return isinstance(report, PartReport) and report.committed


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """The cache is whole without the work inside: if the store fails, that is logged, and the job goes on."""
    try:
        yield
    except StoreError as error:
        log.warning("%s: %s", what, error)


def _label(shard: Shard) -> str:
    return shard_input(shard).label


def _mended_by(plan: JobPlan) -> Callable[[FailureRecord], bool]:
    """Whether a failure is over: its shard is complete, or its file could not be read and now can."""
    complete = {shard.name for shard in plan.complete}
    planned = complete | {task.shard.name for task in plan.tasks} | {shard.name for shard, _ in plan.lost}
    readable = {shard.uri for shard in plan.complete} | {task.shard.uri for task in plan.tasks}
    return lambda failure: (
        failure.shard.name in complete or (failure.shard.uri in readable and failure.shard.name not in planned)
    )


def _failure(plan: JobPlan, run: RunRecord, shard: Shard, attempts: int, why: str) -> FailureRecord:
    ended = RunRecord(run.run_id, run.host, run.started, utc_now(), run.package_version)
    return FailureRecord(plan.dataset.identity_hash, shard_input(shard), attempts, why, ended)
