"""Whole jobs in one process: planned by the real planner, run by the real runner, without Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trio_ray.cache.identity import codec_of
from trio_ray.config import JobConfig, load_config
from trio_ray.model.replica import Replica
from trio_ray.precompute.model_stage import ModelStage
from trio_ray.precompute.plan import JobPlan, plan_job
from trio_ray.precompute.shard_run import InputRead, ShardRunner
from trio_ray.precompute.shard_writer import PartReport, ShardWriter, StoringSpec
from trio_ray.store.commit_table import read_commits
from trio_ray.store.inputs import StoreOpener
from trio_ray.store.objects import ObjectStore


def job_config(model: Path, inputs: Path | str | list[str], output: Path | str, /, **settings: Any) -> JobConfig:
    """A job with parts of four samples, bit exact; `settings` by dotted path, `__` for the dot."""
    stores_kv = settings.get("cache__level", "kv") == "kv"
    tree = {
        "input": inputs if isinstance(inputs, list) else [str(inputs)],
        "output": str(output),
        "model.name": str(model),
        "model.dtype": "float32",
        "method.retention": 0.3,
        "cache.part_samples": 4,
        **({"cache.codec": "raw"} if stores_kv else {}),
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    return load_config(values=tree)


def make_runner(config: JobConfig, replica: Replica, plan: JobPlan) -> ShardRunner:
    """The runner that a replica's actor would make on a CPU."""
    codec = codec_of(plan.dataset.identity, plan.store)
    return ShardRunner(
        stage=ModelStage(
            replica=replica,
            method=plan.method,
            codec=codec,
            cache=config.cache,
            token_budget=config.pipeline.batch_rows,
        ),
        config=config,
        store=plan.store,
        dataset=plan.dataset,
        opener=StoreOpener(config.s3),
        decode_threads=2,
        open_sink=partial(ShardWriter, storing_order(config, plan), plan.store),
    )


def storing_order(config: JobConfig, plan: JobPlan) -> StoringSpec:
    """What storing the plan's shards takes."""
    return StoringSpec.of(config, plan.dataset, codec_of(plan.dataset.identity, plan.store), plan.run_id, cpus=1)


def run_here(config: JobConfig, replica: Replica, /, **changed: Any) -> list[PartReport]:
    """Plan and run all that is left to do; `changed` replaces attributes of the runner."""
    plan = plan_job(config, with_gpu=False)
    runner = replace(make_runner(config, replica, plan), **changed)
    return [
        report for task in plan.tasks for report in part_reports(runner.run(task.shard, task.committed, task.limit))
    ]


def part_reports(reports: Iterator[PartReport | InputRead]) -> Iterator[PartReport]:
    """A run's reports of parts alone."""
    return (report for report in reports if isinstance(report, PartReport))


@dataclass(frozen=True)
class Account:
    """Where every sample of a cache ended: its (shard, index) pairs, in the order of commits."""

    stored: list[tuple[str, int]]
    quarantined: list[tuple[str, int]]
    reasons: dict[str, str]
    keys: list[str]


def account(store: ObjectStore) -> Account:
    """Read from the committed tables what became of each sample."""
    stored, quarantined, reasons, keys = [], [], {}, []
    for commit in read_commits(store, 4):
        rows = pq.read_table(io.BytesIO(store.read(commit.files["samples"].name))).to_pylist()
        stored += [(commit.shard.name, row["index"]) for row in rows]
        keys += [row["key"] for row in rows]
        if "quarantine" in commit.files:
            bad = pq.read_table(io.BytesIO(store.read(commit.files["quarantine"].name))).to_pylist()
            quarantined += [(commit.shard.name, row["index"]) for row in bad]
            reasons.update({row["key"]: row["reason"] for row in bad})
    return Account(stored, quarantined, reasons, keys)
