"""Measure whole jobs on the GPUs of this machine: real Ray, one replica a GPU, a real store.

Writes a corpus, measures one bare replica that has its samples in memory and stores nothing, then runs the job on each
number of replicas, each on as many times more shards, and deletes what it stored. Weights are random unless --shapes
bundled. For S3 give an s3:// output and the usual AWS environment. What is known is written after every step, so a run
that is cut off leaves what it had.

example:
  trio-ray lab job --shapes mistral-7b --runs 1 2 4 1:raw --output s3://bench/out --out runs/job
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trio_ray.commands._options import whole
from trio_ray.commands._progress import shown_steps
from trio_ray.commands.lab._shapes import add_job_options, check_shapes, job_with_model
from trio_ray.config import AUTO_CODEC
from trio_ray.errors import ConfigError, JobFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_job_options(parser)
    parser.add_argument("--shards", type=whole(1), default=8, metavar="N", help="for each replica (default 8)")
    parser.add_argument(
        "--runs",
        nargs="+",
        default=["1"],
        metavar="N[:CODEC]",
        help="one run each, on N replicas, with a codec of its own where one is given (default 1)",
    )
    parser.add_argument("--output", required=True, metavar="URI", help="where the jobs write, emptied after each")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for results, model and corpus")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.lab.jobs.report import study
    from trio_ray.lab.jobs.whole_job import JobBench, JobRun, run_bench
    from trio_ray.lab.machine import describe_run
    from trio_ray.model.decoder import default_device

    check_shapes(arguments.shapes)
    runs = tuple(JobRun(*_parse_run(text)) for text in arguments.runs)
    folder = Path(arguments.out)
    config = job_with_model(arguments, "set by each run")
    bench = JobBench(
        config=config,
        workload=arguments.workload,
        shards=arguments.shards,
        per_shard=arguments.per_shard,
        runs=runs,
    )
    about = {
        **describe_run(default_device()),
        "shapes": arguments.shapes,
        "config": bench.config.model_dump(mode="json", exclude={"input", "output", "s3"}),
    }

    def keep(record: Mapping[str, Any]) -> None:
        study({**about, **record}).write(folder)

    with shown_steps() as show:
        record = run_bench(bench, folder, show, keep)
    print(study({**about, **record}).text)
    failed = [run["failed"] for run in record["runs"] if "failed" in run]
    if failed:
        raise JobFailed(f"{len(failed)} of the runs failed, the first: {failed[0]}")
    return 0


def _parse_run(text: str) -> tuple[int, Any]:
    from trio_ray.kv.codecs.registry import full_spec

    number, sign, codec = text.partition(":")
    if not number.isdigit() or int(number) < 1:
        raise ConfigError("--runs", f"{text!r} must begin with a number of replicas")
    if not sign:
        return int(number), None
    try:
        choice = yaml.safe_load(codec)
        if choice != AUTO_CODEC:
            full_spec(choice)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError("--runs", f"{text!r}: {' '.join(str(error).split())}") from None
    return int(number), choice
