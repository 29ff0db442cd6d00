"""Measure how far dtypes, attention kernels and batch sizes agree: kept tokens and answers to held-out questions.

One model, pruned by trio at 11.1 %, in every way that this machine can run it; the first is float32. Each is told on
standard error as soon as it is known; --out DIR gets agreement.json and agreement.md.
"""

from __future__ import annotations

import argparse
import json

from trio_ray.commands._options import make_folder, print_written, whole
from trio_ray.commands._progress import shown_steps
from trio_ray.config import BUNDLED_MODEL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--questions", type=whole(1), default=200, metavar="N", help="held-out questions (default 200)")
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="NAME", help="default: the bundled model")
    parser.add_argument("--out", metavar="DIR", help="folder for results")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.lab.agreement import measure_agreement, study

    folder = make_folder("--out", arguments.out) if arguments.out else None
    with shown_steps() as show:
        records, skipped = measure_agreement(
            arguments.questions, arguments.model, on_way=lambda record: show(json.dumps(record))
        )
    found = study(arguments.questions, records, skipped)
    print(found.text)
    if folder:
        print_written(found.write(folder))
    return 0
