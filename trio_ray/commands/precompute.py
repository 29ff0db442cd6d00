"""Run TRIO over shards of image-text data and store the pruned prefixes.

The same command again goes on where an earlier run stopped, whatever stopped it; with nothing left to do it ends in
seconds. Ray is started on this machine, or joined where RAY_ADDRESS names a cluster (`ray job submit` sets it).

example:
  trio-ray precompute --input 's3://corpus/{00000..00099}.tar' --output s3://bucket/cache \\
      --model llava-hf/llava-v1.6-vicuna-7b-hf --retention 0.111 --set replicas.max=8
"""

from __future__ import annotations

import argparse
import logging

from trio_ray.commands._options import add_job_options, add_log_file_option, check_log_file, job_config, whole
from trio_ray.config import JobConfig
from trio_ray.errors import JobFailed

log = logging.getLogger("trio_ray")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_job_options(parser)
    parser.add_argument(
        "--redo-damaged", action="store_const", const=True,
        help="input files that were damaged when they were read and have been replaced since are read again, and "
        "what was committed of them goes",
    )  # fmt: skip

    parser.add_argument(
        "--limit", type=whole(1), metavar="N",
        help="a trial: store up to N samples, from all over the input, in a cache of their own beside the output",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="say what would be done, and how many hours and bytes that would take; write nothing",
    )  # fmt: skip
    add_log_file_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the job; 0 if all input is in the cache or in quarantine, 4 if not."""
    check_log_file(arguments)
    config = job_config(arguments)
    if arguments.dry_run:
        return _say_what_would_be_done(config)
    from trio_ray.cluster.progress import progress_display
    from trio_ray.precompute.job import run_job

    with progress_display(arguments.log_file) as progress:
        summary = run_job(config, progress)
        log.info("%s", summary)
    print(summary)
    if config.pipeline.limit is not None:
        print(f"this was a trial (--limit); {config.output} is as it was")
    return 0 if summary.ok else JobFailed.exit_code


def _say_what_would_be_done(config: JobConfig) -> int:
    from trio_ray.cluster.progress import progress_display
    from trio_ray.estimate.preview import preview

    with progress_display() as progress:
        found = preview(config.as_run, progress)
    print(found)
    return 0
