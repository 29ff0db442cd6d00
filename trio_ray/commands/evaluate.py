"""Measure what a selection costs in right answers, on rendered scenes that the bundled model was not trained on.

Each method answers the same questions at each retention; the model with all its tokens answers nearly all of them, so
what is lost is the selection's fault. Prints a table; --out DIR writes accuracy.json, accuracy.md and accuracy.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.evaluation.methods import METHODS, RETENTIONS, method_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--questions", type=int, default=500, metavar="N", help="held-out questions (default 500)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=f"of: {', '.join(METHODS)}")
    parser.add_argument(
        "--retentions", nargs="+", type=float, default=list(RETENTIONS), metavar="R", help="shares of the image tokens"
    )
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="first test scene (default 0)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="questions packed together (default 64)")
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="NAME", help="default: the bundled model")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="arithmetic (default float32)")
    parser.add_argument("--out", metavar="DIR", help="folder for JSON, table and plot")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from trio_ray.evaluation.accuracy import Setting, measure_accuracy
    from trio_ray.evaluation.questions import held_out_questions
    from trio_ray.evaluation.report import markdown, plot, summarise
    from trio_ray.model.replica import Replica

    for name in arguments.methods:
        if name not in METHODS:
            raise ConfigError("--methods", f"{name!r} is none of {', '.join(METHODS)}")
    for retention in arguments.retentions:
        if not 0 < retention <= 1:
            raise ConfigError("--retentions", f"{retention} must be above 0 and at most 1")
    if arguments.questions < 1:
        raise ConfigError("--questions", f"{arguments.questions} must be at least 1")
    started = time.monotonic()
    questions = held_out_questions(arguments.questions, first_seed=arguments.first_seed)
    replica = Replica.load(ModelConfig(name=arguments.model, dtype=arguments.dtype))
    settings = [
        Setting(name if retention < 1 else "all tokens", retention, method_config(name, retention))
        for retention in arguments.retentions
        for name in (arguments.methods if retention < 1 else ["trio"])
    ]

    def show(done: int) -> None:
        left = (time.monotonic() - started) * (len(questions) - done) / done
        print(f"\r{done} of {len(questions)} questions, {left:.0f} s left ", end="", file=sys.stderr, flush=True)

    records = summarise(measure_accuracy(replica, questions, settings, arguments.batch, show), questions)
    print(file=sys.stderr)
    table = markdown(records)
    print(table)
    print(f"{len(questions)} questions, {len(settings)} settings, {replica.device}, {time.monotonic() - started:.0f} s")
    if arguments.out:
        folder = Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "accuracy.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        (folder / "accuracy.md").write_text(table + "\n", encoding="utf-8")
        plot(records, str(folder / "accuracy.png"))
        print(f"written: {folder}/accuracy.json, accuracy.md, accuracy.png")
    return 0
