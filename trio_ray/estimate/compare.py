"""A plan beside what the job then did, from the cache that it left."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from trio_ray.config import JobConfig
from trio_ray.estimate.estimate import Plan
from trio_ray.store.commits import CommitRecord, read_commits
from trio_ray.store.dataset import load_dataset
from trio_ray.store.layout import COMMITS
from trio_ray.store.opening import open_store

READERS = 32


@dataclass(frozen=True)
class Comparison:
    """One number, predicted and actual."""

    what: str
    unit: str
    predicted: float
    actual: float

    @property
    def error(self) -> float:
        """Share by which the prediction is too high."""
        return self.predicted / self.actual - 1 if self.actual else float("inf") if self.predicted else 0.0


def compare(plan: Plan, config: JobConfig) -> tuple[Comparison, ...]:
    """The plan against the cache at the job's output, which must be finished and the work of one run.

    The run's time is that from its first part's beginning to its last part's end: Ray's start and loading the model lie
    before it.

    Raises:
        NotACacheError: there is none.
        ObjectDamaged: a record is not as it was written.
    """
    store = open_store(config.output, config.s3)
    load_dataset(store)
    commits = read_commits(store, READERS)
    files = [file for commit in commits for file in commit.files.values()]
    records = sum(info.size for info in store.list(COMMITS))
    stored = sum(commit.stored for commit in commits)
    began = min((datetime.fromisoformat(commit.run.started) for commit in commits), default=None)
    ended = max((datetime.fromisoformat(commit.run.finished) for commit in commits), default=None)
    seconds = (ended - began).total_seconds() if began and ended else 0.0
    job, corpus = plan.job, plan.corpus
    return (
        Comparison("samples stored", "", corpus.stored_samples, stored),
        Comparison("samples in quarantine", "", corpus.samples - corpus.stored_samples, _bad(commits)),
        Comparison("parts", "", job.parts, len(commits)),
        Comparison("bytes of the cache", "bytes", job.total_bytes, sum(file.size for file in files) + records),
        Comparison("work of all replicas", "s", job.gpu_hours * 3600, seconds * job.replicas),
    )


def _bad(commits: list[CommitRecord]) -> int:
    return sum(commit.quarantined for commit in commits)
