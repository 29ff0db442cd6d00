"""Whole jobs, real Ray and a real store, on 1, 2, 4 ... replicas of one machine, beside the bare replica."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trio_ray.benchmark.job_corpus import write_corpus
from trio_ray.benchmark.job_watch import JobWatch
from trio_ray.config import JobConfig
from trio_ray.errors import JobFailed, StoreError
from trio_ray.pipeline.job import run_job
from trio_ray.store.opening import open_store

BARE_SAMPLES = 192


@dataclass(frozen=True)
class JobRun:
    """One run: on so many replicas, with another codec than the job's where one is given."""

    replicas: int
    codec: str | dict[str, Any] | None = None


@dataclass(frozen=True)
class JobBench:
    """What to run.

    Attributes:
        config: the job, without input; its output gets a folder a run.
        workload: `pope` or `web`.
        shards: of each run, for one replica; more replicas get as many times more.
        per_shard: samples.
        runs: one after the other.
        kill: whether a further run, on the most replicas, loses one of them on the way.
    """

    config: JobConfig
    workload: str
    shards: int
    per_shard: int
    runs: tuple[JobRun, ...]
    kill: bool


def run_bench(bench: JobBench, folder: Path, on_step: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Run it; the record is what `bench-job.json` holds.

    Args:
        bench: what to run.
        folder: where the corpus is written.
        on_step: told what begins.

    Raises:
        JobFailed: the bare replica or a run did not come to its end.
    """
    most = max(run.replicas for run in bench.runs)
    inputs = write_corpus(folder / "corpus", bench.workload, bench.shards * most, bench.per_shard)
    on_step("bare replica")
    bare = _bare(bench)
    record: dict[str, Any] = {"bare": bare, "runs": [], "workload": bench.workload, "per_shard": bench.per_shard}
    for number, run in enumerate(bench.runs):
        on_step(f"job on {run.replicas} replicas")
        watch = _run(bench, inputs[: bench.shards * run.replicas], run, f"run{number}")
        result = {"codec": run.codec or bench.config.cache.codec, **watch.summary(run.replicas)}
        rate = result["samples_per_s"]
        result["times_bare"] = None if rate is None else rate / (run.replicas * median(bare["samples_per_s"]))
        record["runs"].append(result)
        on_step(json.dumps(result))
    if bench.kill:
        on_step(f"job on {most} replicas, of which one is killed")
        record["kill"] = _run_with_kill(bench, inputs, JobRun(most))
        on_step(json.dumps(record["kill"]))
    return record


def _bare(bench: JobBench) -> dict[str, Any]:
    order = {"config": bench.config.model_dump(mode="json"), "workload": bench.workload, "samples": BARE_SAMPLES}
    command = [sys.executable, "-m", "trio_ray.benchmark.bare_replica"]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobFailed(f"the bare replica ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _run(bench: JobBench, inputs: Sequence[str], run: JobRun, name: str) -> JobWatch:
    pipeline = bench.config.pipeline.model_copy(update={"replicas_min": run.replicas, "replicas_max": run.replicas})
    cache = bench.config.cache.model_copy(update={} if run.codec is None else {"codec": run.codec})
    output = f"{bench.config.output.rstrip('/')}/{name}"
    config = bench.config.model_copy(
        update={"input": tuple(inputs), "output": output, "pipeline": pipeline, "cache": cache}
    )
    watch = JobWatch()
    try:
        summary = run_job(config, watch)
        if not summary.ok:
            raise JobFailed(str(summary))
    finally:
        _empty(config)
    return watch


def _run_with_kill(bench: JobBench, inputs: Sequence[str], run: JobRun) -> dict[str, Any]:
    """Kill one replica when all of them have worked for a while; say what it cost."""
    killed: list[float] = []
    replicas = run.replicas
    began = time.monotonic()
    killer = threading.Thread(target=_kill_one, args=(replicas, began, killed), daemon=True)
    killer.start()
    watch = _run(bench, inputs, run, "kill")
    summary = watch.summary(replicas)
    ready = watch.ready()
    back = ready[replicas] if len(ready) > replicas else None
    end = summary["seconds"] - summary["tail_s"]
    return {
        **summary,
        "expected": len(inputs) * bench.per_shard,
        "killed_s": killed[0] if killed else None,
        "replaced_s": back,
        "samples_per_s_before": watch.rate(max(ready[:replicas]) + 5, killed[0]) if killed else None,
        "samples_per_s_after": watch.rate(back + 5, end) if back is not None and end > back + 5 else None,
    }


def _kill_one(replicas: int, began: float, killed: list[float]) -> None:
    found_since = None
    while time.monotonic() - began < 600:
        time.sleep(1)
        working = _replica_processes()
        found_since = (found_since or time.monotonic()) if len(working) >= replicas else None
        if found_since and time.monotonic() - found_since > KILL_AFTER_S:
            os.kill(working[0], signal.SIGKILL)
            killed.append(time.monotonic() - began)
            return


KILL_AFTER_S = 45.0
"""After all replicas were seen: they load and compile first."""


def _replica_processes() -> list[int]:
    """Process numbers of this machine's replica actors, which Ray names after the method that they are at."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::ReplicaActor"):
                found.append(int(entry.name))
    return found


def _empty(config: JobConfig) -> None:
    """Delete what a run wrote, so that the next one finds room."""
    store = open_store(config.output, config.s3)
    with contextlib.suppress(StoreError):
        for info in list(store.list("")):
            store.delete(info.name)
