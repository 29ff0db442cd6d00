"""Measure evaluations as jobs on the GPUs of this machine: real Ray, one replica a GPU, a real cache.

Makes a cache by a precompute job, or uses the complete one at --output, and answers all of its questions: by one
bare engine in one call, without Ray, and by the job on each number of replicas. Weights are random unless --shapes
bundled; then answers have all the tokens that they may. For S3 give an s3:// output and the usual AWS environment.

example:
  trio-ray lab evaluation --shapes mistral-7b --replicas 1 2 --output s3://bench/cache --out runs/evaluation
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trio_ray.commands._options import whole
from trio_ray.commands._progress import shown_steps
from trio_ray.commands.lab._shapes import add_job_options, check_shapes, job_with_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_job_options(parser)
    parser.add_argument("--shards", type=whole(1), default=8, metavar="N", help="of the cache (default 8)")
    parser.add_argument(
        "--replicas", nargs="+", type=whole(1), default=[1], metavar="N", help="one evaluation on each (default 1)"
    )
    parser.add_argument("--tokens", type=whole(1), default=16, metavar="N", help="of an answer, at most (default 16)")
    parser.add_argument("--chunk", type=whole(1), metavar="N", help="answering.chunk_questions (default: the job's)")
    parser.add_argument("--rounds", type=whole(1), default=1, metavar="R", help="turns (default 1)")
    parser.add_argument("--output", required=True, metavar="URI", help="where the cache is or goes")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for results, model, corpus and answers")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.evaluate.config import AnsweringConfig
    from trio_ray.lab.jobs.evaluation import EvaluationBench, run_bench, study
    from trio_ray.lab.machine import describe_run
    from trio_ray.model.decoder import default_device

    folder = Path(arguments.out)
    check_shapes(arguments.shapes)
    config = job_with_model(arguments, "made by the command")
    chunk = {} if arguments.chunk is None else {"chunk_questions": arguments.chunk}
    bench = EvaluationBench(
        config=config,
        answering=AnsweringConfig(max_new_tokens=arguments.tokens, **chunk),
        workload=arguments.workload,
        shards=arguments.shards,
        per_shard=arguments.per_shard,
        replicas=tuple(arguments.replicas),
        rounds=arguments.rounds,
    )
    about = {
        **describe_run(default_device()),
        "shapes": arguments.shapes,
        "answering": bench.answering.model_dump(mode="json"),
        "config": config.model_dump(mode="json", exclude={"input", "output", "s3"}),
    }

    def keep(record: Mapping[str, Any]) -> None:
        if record["rounds"][0]["runs"]:
            study({**about, **record}).write(folder)

    with shown_steps() as show:
        record = run_bench(bench, folder, show, keep)
    print(study({**about, **record}).text)
    return 0
