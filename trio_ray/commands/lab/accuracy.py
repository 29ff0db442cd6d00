"""Measure what a selection costs in right answers, on rendered scenes that the bundled model never saw.

Each method answers the same questions at each retention; the model with all its tokens answers nearly all of them, so
what is lost is the selection's fault. Prints a table; --out DIR writes accuracy.json, accuracy.md and accuracy.png.
"""

from __future__ import annotations

import argparse
import time

from trio_ray.commands._options import SHARE, make_folder, print_written, whole
from trio_ray.commands._progress import shown_count
from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.lab.accuracy.methods import RETENTIONS, method_config, methods


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--questions", type=whole(1), default=500, metavar="N", help="held-out questions (default 500)")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME",
        help="rows of the table (default all), or module:Class for a selector of your own",
    )  # fmt: skip
    parser.add_argument(
        "--retentions", nargs="+", type=SHARE, default=RETENTIONS, metavar="R",
        help=f"shares of the image tokens (default {' '.join(map(str, RETENTIONS))})",
    )  # fmt: skip
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="first test scene (default 0)")
    parser.add_argument(
        "--batch", type=whole(1), default=64, metavar="N", help="questions packed together (default 64)"
    )
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="NAME", help="default: the bundled model")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="arithmetic (default float32)")
    parser.add_argument("--out", metavar="DIR", help="folder for JSON, table and plot")


def run(arguments: argparse.Namespace) -> int:
    """Measure every method at every retention, and report."""
    from trio_ray.lab.accuracy.accuracy import Setting, measure_accuracy
    from trio_ray.lab.accuracy.questions import held_out_questions
    from trio_ray.lab.accuracy.report import study, summarise
    from trio_ray.model.replica import Replica

    folder = make_folder("--out", arguments.out) if arguments.out else None
    started = time.monotonic()
    questions = held_out_questions(arguments.questions, first_seed=arguments.first_seed)
    settings = [
        Setting(name if retention < 1 else "all tokens", retention, method_config(name, retention))
        for retention in arguments.retentions
        for name in (arguments.methods or methods() if retention < 1 else ["trio"])
    ]
    replica = Replica.load(ModelConfig(name=arguments.model, dtype=arguments.dtype))

    with shown_count("questions", len(questions)) as show:
        records = summarise(measure_accuracy(replica, questions, settings, arguments.batch, show), questions)
    found = study(records)
    print(found.text)
    print(f"{len(questions)} questions, {len(settings)} settings, {replica.device}, {time.monotonic() - started:.0f} s")
    if folder:
        print_written(found.write(folder))
    return 0
