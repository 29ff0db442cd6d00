"""Measure what a selection, or a codec, costs in right answers, on rendered scenes that the bundled model never saw.

Each method answers the same questions at each retention; the model with all its tokens answers nearly all of them, so
what is lost is the selection's fault. Prints a table; --out DIR writes accuracy.json, accuracy.md and accuracy.png.

With --codecs each codec stores and loads the same prefixes instead, and answers are compared with those from the same
16-bit states that never left memory; text continued by a pretrained language model is measured as well, where that is
installed. Prints the tables; --out DIR writes codecs.json, codecs.md and codecs.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from trio_ray.commands.outputs import make_folder
from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.lab.accuracy.methods import METHODS, RETENTIONS, method_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--questions",
        type=int,
        default=500,
        metavar="N",
        help="held-out questions (default 500; 0 for none, with --codecs)",
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help=f"of: {', '.join(METHODS)} (default all; trio with --codecs)"
    )
    parser.add_argument(
        "--retentions", nargs="+", type=float, metavar="R",
        help="shares of the image tokens (default 1 0.333 0.222 0.111 0.056; 1 0.111 with --codecs)",
    )  # fmt: skip
    parser.add_argument(
        "--codecs", nargs="*", metavar="CODEC",
        help="measure codecs: names, or mappings such as '{name: int, keys: 2, values: 4}' (default: one of each kind)",
    )  # fmt: skip
    parser.add_argument(
        "--passages", type=int, metavar="N", help="with --codecs: passages of text continued, 0 for none (default 40)"
    )
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="first test scene (default 0)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="questions packed together (default 64)")
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="NAME", help="default: the bundled model")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="arithmetic (default float32)")
    parser.add_argument("--out", metavar="DIR", help="folder for JSON, table and plot")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    for name in arguments.methods or ():
        if name not in METHODS:
            raise ConfigError("--methods", f"{name!r} is none of {', '.join(METHODS)}")
    for retention in arguments.retentions or ():
        if not 0 < retention <= 1:
            raise ConfigError("--retentions", f"{retention} must be above 0 and at most 1")
    if arguments.batch < 1:
        raise ConfigError("--batch", f"{arguments.batch} must be at least 1")
    least = 1 if arguments.codecs is None else 0
    if arguments.questions < least:
        raise ConfigError("--questions", f"{arguments.questions} must be at least {least}")
    if arguments.codecs is not None:
        from trio_ray.commands.evaluate_codecs import measure_codecs

        return measure_codecs(arguments)
    if arguments.passages is not None:
        raise ConfigError("--passages", "belongs to --codecs")
    return measure_selections(arguments)


def measure_selections(arguments: argparse.Namespace) -> int:
    """Every method at every retention."""
    from trio_ray.lab.accuracy.accuracy import Setting, measure_accuracy
    from trio_ray.lab.accuracy.questions import held_out_questions
    from trio_ray.lab.accuracy.report import markdown, plot, summarise
    from trio_ray.model.replica import Replica

    folder = make_folder("--out", arguments.out) if arguments.out else None
    started = time.monotonic()
    questions = held_out_questions(arguments.questions, first_seed=arguments.first_seed)
    replica = Replica.load(ModelConfig(name=arguments.model, dtype=arguments.dtype))
    settings = [
        Setting(name if retention < 1 else "all tokens", retention, method_config(name, retention))
        for retention in arguments.retentions or RETENTIONS
        for name in (arguments.methods or METHODS if retention < 1 else ["trio"])
    ]

    def show(done: int) -> None:
        left = (time.monotonic() - started) * (len(questions) - done) / done
        print(f"\r{done} of {len(questions)} questions, {left:.0f} s left ", end="", file=sys.stderr, flush=True)

    records = summarise(measure_accuracy(replica, questions, settings, arguments.batch, show), questions)
    print(file=sys.stderr)
    table = markdown(records)
    print(table)
    print(f"{len(questions)} questions, {len(settings)} settings, {replica.device}, {time.monotonic() - started:.0f} s")
    if folder:
        (folder / "accuracy.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        (folder / "accuracy.md").write_text(table + "\n", encoding="utf-8")
        plot(records, str(folder / "accuracy.png"))
        print(f"written: {folder}/accuracy.json, accuracy.md, accuracy.png")
    return 0
