"""Answer and score a set of questions from a cache.

The questions are joined with the stored prefixes by their keys, answered by replicas on Ray, scored, and written below
the output as answers.jsonl, unanswered.jsonl and metrics.json. Ray is started on this machine, or joined where
RAY_ADDRESS names a cluster (`ray job submit` sets it).

example:
  trio-ray evaluate --cache s3://bucket/cache --input 'pope/*.parquet' --output results --set scorer=pope
"""

from __future__ import annotations

import argparse

from trio_ray.commands._options import add_log_file_option, add_settings_options, check_log_file, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--cache", metavar="URI", help="the cache: a folder or s3://bucket/prefix")
    parser.add_argument("--input", metavar="URI", nargs="+", help="question files; without any, all that the cache has")
    parser.add_argument("--output", metavar="URI", help="where answers and metrics go")
    add_settings_options(parser, "scorer=pope")
    add_log_file_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer, score and report."""
    from trio_ray.cluster.progress import progress_display
    from trio_ray.evaluate.config import EvaluateConfig
    from trio_ray.evaluate.job import run_evaluation
    from trio_ray.evaluate.report import report

    check_log_file(arguments)
    config = settings(EvaluateConfig, arguments, ("cache", "input", "output"))
    with progress_display(arguments.log_file) as progress:
        metrics = run_evaluation(config, progress)
    print(report(metrics))
    return 0
