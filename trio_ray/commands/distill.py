"""Train a student with fewer layers from cached teacher prefixes.

The same command again goes on from the last checkpoint. Ray is started on this machine, or joined where RAY_ADDRESS
names a cluster (`ray job submit` sets it).

example:
  trio-ray distill --cache s3://bucket/cache --output s3://bucket/student --set student.layers=4 --set replicas.max=8
"""

from __future__ import annotations

import argparse

from trio_ray.commands._options import add_log_file_option, add_settings_options, check_log_file, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--cache", metavar="URI", help="the samples: an embeds cache, a folder or s3://bucket/prefix")
    parser.add_argument("--output", metavar="URI", help="where the student and its metrics go")
    add_settings_options(parser, "student.layers=4")
    add_log_file_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train and report."""
    from trio_ray.cluster.progress import progress_display
    from trio_ray.distill.config import DistillConfig
    from trio_ray.distill.job import run_distillation
    from trio_ray.distill.report import report

    check_log_file(arguments)
    config = settings(DistillConfig, arguments, ("cache", "output"))
    with progress_display(arguments.log_file) as progress:
        metrics = run_distillation(config, progress)
    print(report(metrics))
    return 0
