"""Run TRIO over shards of image-text data and store the pruned prefixes.

The same command again goes on where an earlier run stopped, whatever stopped it; with nothing left to do it ends in
seconds. Ray is started on this machine, or joined where RAY_ADDRESS names a cluster (`ray job submit` sets it).

example:
  trio-ray precompute --input 's3://corpus/{00000..00099}.tar' --output s3://bucket/cache \\
      --model llava-hf/llava-v1.6-vicuna-7b-hf --retention 0.111 --set pipeline.replicas_max=8
"""

from __future__ import annotations

import argparse
from typing import Any

from trio_ray.config import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; the options below override it")
    parser.add_argument(
        "--input", metavar="URI", nargs="+", help="shards: paths or s3:// URIs, with globs and {a..b} ranges"
    )
    parser.add_argument("--output", metavar="URI", help="the cache: a folder or s3://bucket/prefix")
    parser.add_argument("--model", metavar="NAME", help="'bundled', a folder, or a Hugging Face hub name")
    parser.add_argument(
        "--retention", type=float, metavar="R", help="image tokens kept, mean over all layers, 0 < R <= 1"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any setting by its dotted name, e.g. "
        "pipeline.token_budget=32768 (repeatable; jobs/CONFIGURATION.md lists them all)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run the job; 0 if all input is in the cache or in quarantine, 4 if not."""
    named: dict[str, Any] = {
        "input": arguments.input,
        "output": arguments.output,
        "model.name": arguments.model,
        "method.retention": arguments.retention,
    }
    config = load_config(
        arguments.config, arguments.set, {name: value for name, value in named.items() if value is not None}
    )
    from trio_ray.cluster.progress import make_progress
    from trio_ray.precompute.job import run_job

    progress = make_progress()
    try:
        summary = run_job(config, progress)
    finally:
        progress.close()
    print(summary)
    return 0 if summary.ok else 4
