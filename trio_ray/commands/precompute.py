"""Run TRIO over shards of image-text data and store the pruned prefixes.

The same command again goes on where an earlier run stopped, whatever stopped it; with nothing left to do it ends in
seconds. Ray is started on this machine, or joined where RAY_ADDRESS names a cluster (`ray job submit` sets it).

example:
  trio-ray precompute --input 's3://corpus/{00000..00099}.tar' --output s3://bucket/cache \\
      --model llava-hf/llava-v1.6-vicuna-7b-hf --retention 0.111 --set replicas.max=8
"""

from __future__ import annotations

import argparse

from trio_ray.commands._options import add_job_options, job_config
from trio_ray.errors import JobFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_job_options(parser)
    parser.add_argument(
        "--redo-damaged", action="store_const", const=True,
        help="input files that were damaged when they were read and have been replaced since are read again, and "
        "what was committed of them goes",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run the job; 0 if all input is in the cache or in quarantine, 4 if not."""
    config = job_config(arguments)
    from trio_ray.cluster.progress import progress_display
    from trio_ray.precompute.job import run_job

    with progress_display() as progress:
        summary = run_job(config, progress)
    print(summary)
    return 0 if summary.ok else JobFailed.exit_code
