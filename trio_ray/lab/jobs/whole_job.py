"""Whole jobs, real Ray and a real store, on 1, 2, 4 ... replicas of one machine, beside the bare replica."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError, JobFailed, StoreError, TrioRayError
from trio_ray.lab.jobs.corpus import write_corpus
from trio_ray.lab.jobs.own_process import in_own_process
from trio_ray.lab.jobs.watch import JobWatch
from trio_ray.precompute.job import run_job
from trio_ray.store.commit_table import read_commits
from trio_ray.store.opening import open_store

BARE_SAMPLES = 384

READ_THREADS = 16

CodecSetting = str | dict[str, Any]


@dataclass(frozen=True)
class JobRun:
    """One run: its number of replicas, and its codec if that is not the job's."""

    replicas: int
    codec: CodecSetting | None = None


@dataclass(frozen=True)
class JobBench:
    """What to run.

    Attributes:
        config: the job, without input; its output gets a folder a run.
        workload: `pope` or `web`.
        shards: of each run, for one replica; more replicas get as many times more.
        per_shard: samples.
        runs: one after the other.
    """

    config: JobConfig
    workload: str
    shards: int
    per_shard: int
    runs: tuple[JobRun, ...]

    @property
    def most(self) -> int:
        """Replicas of the largest run."""
        return max(run.replicas for run in self.runs)

    def codec_of(self, run: JobRun) -> CodecSetting:
        """The codec of a run, as the user gave it."""
        return self.config.cache.codec if run.codec is None else run.codec


def run_bench(
    bench: JobBench,
    folder: Path,
    on_step: Callable[[str], None] = lambda what: None,
    on_record: Callable[[Mapping[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Run it; the record is what `job.json` holds.

    A run that fails says so in its place (`failed`), and the others follow.

    Args:
        bench: what to run.
        folder: where the corpus is written.
        on_step: told what begins, and in JSON what came of it.
        on_record: given all that is known so far, whenever it has grown.

    Raises:
        JobFailed: the bare replica could not be measured.
    """
    record: dict[str, Any] = {"workload": bench.workload, "per_shard": bench.per_shard, "runs": []}

    def note(found: Mapping[str, Any]) -> None:
        on_step(json.dumps({name: round(x, 4) if isinstance(x, float) else x for name, x in found.items()}))
        on_record(record)

    inputs = write_corpus(folder / "corpus", bench.workload, bench.shards * bench.most, bench.per_shard)
    jobs = _Jobs(bench, inputs)
    on_step("bare replica")
    record["bare"] = jobs.bare()
    note(record["bare"])
    for number, run in enumerate(bench.runs):
        on_step(f"job on {run.replicas} replicas, codec {bench.codec_of(run)}")
        record["runs"].append(jobs.measured(run, f"run{number}", record["bare"]))
        note(record["runs"][-1])
    return record


@dataclass(frozen=True)
class _Jobs:
    """Jobs over one corpus."""

    bench: JobBench
    inputs: Sequence[str]

    def bare(self) -> dict[str, Any]:
        """The bare replica's rates, without coding and with the job's codec, if that is known by now."""
        config = self.bench.config
        order = {
            "config": config.model_dump(mode="json"),
            "workload": self.bench.workload,
            "samples": BARE_SAMPLES,
            "coding": not config.cache.chooses_codec,
        }
        return in_own_process("trio_ray.lab.jobs.bare_replica", "bare replica", order)

    def measured(self, run: JobRun, name: str, bare: Mapping[str, Any]) -> dict[str, Any]:
        """A run's record, beside the bare replica's."""
        about = {"replicas": run.replicas, "codec": self.bench.codec_of(run)}
        try:
            found = self._run(run, name, JobWatch())
        except TrioRayError as error:
            return {**about, "failed": str(error)}
        coding = bare.get("coding_samples_per_s") if self.bench.codec_of(run) == self.bench.config.cache.codec else None
        return {
            **about,
            **found,
            "times_bare": _share(found["samples_per_s"], run.replicas, bare["samples_per_s"]),
            "times_bare_coding": _share(found["samples_per_s"], run.replicas, coding),
        }

    def _run(self, run: JobRun, name: str, watch: JobWatch) -> dict[str, Any]:
        """The watch's numbers of a run. The number of samples comes from the cache, because a killed replica may have
        committed a part that it could not report.
        """
        config = self.bench.config
        cache = config.cache.model_copy(update={"codec": self.bench.codec_of(run)})
        replicas = config.replicas.model_copy(update={"min": run.replicas, "max": run.replicas})
        inputs = tuple(self.inputs[: self.bench.shards * run.replicas])
        output = f"{config.output.rstrip('/')}/{name}"
        config = config.model_copy(update={"input": inputs, "output": output, "replicas": replicas, "cache": cache})
        _check_empty(config)
        try:
            summary = run_job(config, observer=watch.note)
            if not summary.ok:
                raise JobFailed(str(summary))
            commits = read_commits(open_store(config.output, config.s3), READ_THREADS)
        finally:
            _empty(config)
        return {**watch.summary(run.replicas), "samples": commits.totals.stored}


def _share(rate: float | None, replicas: int, bare: Sequence[float] | None) -> float | None:
    """The rate as a share of what as many bare replicas reach."""
    return None if rate is None or bare is None else rate / (replicas * median(bare))


def _check_empty(config: JobConfig) -> None:
    """Refuse an output that holds anything: it may be somebody's, and a run deletes its output at its end.

    Raises:
        ConfigError: something is there.
    """
    store = open_store(config.output, config.s3)
    found = next(iter(store.list("")), None)
    if found is not None:
        raise ConfigError("--output", f"{store.uri_of(found.name)} is there already; give an --output without it")


def _empty(config: JobConfig) -> None:
    """Delete what a run wrote, so that the next one finds room."""
    store = open_store(config.output, config.s3)
    with contextlib.suppress(StoreError):
        for info in list(store.list("")):
            store.delete(info.name)
