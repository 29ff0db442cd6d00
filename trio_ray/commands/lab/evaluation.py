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

from trio_ray.commands._options import make_folder, whole
from trio_ray.commands._progress import shown_steps
from trio_ray.config import BUNDLED_MODEL, load_config
from trio_ray.errors import ConfigError
from trio_ray.lab.prefill.settings import WORKLOADS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    shapes = "model: bundled (default), or random weights in the shapes of vicuna-7b, mistral-7b, tiny"
    parser.add_argument("--shapes", default=BUNDLED_MODEL, metavar="NAME", help=shapes)
    parser.add_argument("--workload", default="pope", choices=WORKLOADS, help="images and prompts (default pope)")
    parser.add_argument("--shards", type=whole(1), default=8, metavar="N", help="of the cache (default 8)")
    parser.add_argument("--per-shard", type=whole(1), default=512, metavar="N", help="samples a shard (default 512)")
    parser.add_argument(
        "--replicas", nargs="+", type=whole(1), default=[1], metavar="N", help="one evaluation on each (default 1)"
    )
    parser.add_argument("--tokens", type=whole(1), default=16, metavar="N", help="of an answer, at most (default 16)")
    parser.add_argument("--chunk", type=whole(1), metavar="N", help="answering.chunk_questions (default: the job's)")
    parser.add_argument("--rounds", type=whole(1), default=1, metavar="R", help="turns (default 1)")
    parser.add_argument("--output", required=True, metavar="URI", help="where the cache is or goes")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings of the precompute job")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any setting of that job")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for results, model, corpus and answers")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.evaluate.config import AnsweringConfig
    from trio_ray.lab.jobs.evaluation import EvaluationBench, run_bench, study
    from trio_ray.lab.machine import describe_run
    from trio_ray.model.decoder import default_device
    from trio_ray.model.shapes import SHAPES, write_model

    if arguments.shapes not in (*SHAPES, BUNDLED_MODEL):
        raise ConfigError("--shapes", f"{arguments.shapes!r} is none of {', '.join(SHAPES)}, {BUNDLED_MODEL}")
    folder = Path(arguments.out)
    model = folder.absolute() / "model"
    name = BUNDLED_MODEL if arguments.shapes == BUNDLED_MODEL else str(model)
    values = {"model.name": name, "output": arguments.output, "input": "made by the command"}
    config = load_config(arguments.config, arguments.set, values)
    make_folder("--out", arguments.out)
    if name != BUNDLED_MODEL:
        write_model(model, arguments.shapes)
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
