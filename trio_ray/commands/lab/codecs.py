"""Measure what codecs cost in quality and bytes, and how fast they are.

Each codec stores and loads the same prefixes, and answers are compared with those from the same 16-bit states that
never left memory; text continued by a pretrained language model is measured as well, where that is installed. --speed
measures GB/s on the GPU or CPU at hand, on made-up keys and values in the shapes of a decoder. Prints the tables; --out
DIR writes codecs.json, codecs.md and codecs.png.

examples:
  trio-ray lab codecs --codecs int8 int4 '{name: transform, divergence: 0.003}' --out runs/codecs
  trio-ray lab codecs --questions 0 --passages 0 --speed vicuna-7b --codecs int4 '{name: transform, ratio: 8}'
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from trio_ray.commands._options import SHARE, make_folder, print_written, whole
from trio_ray.commands._progress import shown_count, shown_steps
from trio_ray.config import BUNDLED_MODEL, ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.study import Study

if TYPE_CHECKING:
    from trio_ray.lab.codecs.recipes import Recipe
    from trio_ray.lab.codecs.report import Record

CODECS = ("raw", "int8", "int4", "int2", "transform")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--codecs", nargs="+", default=CODECS, metavar="CODEC",
        help="names, or mappings such as '{name: int, keys: 2, values: 4}'; a basis of transform is fitted, to a "
        f"divergence in nats or for --speed to a ratio (default {' '.join(CODECS)})",
    )  # fmt: skip
    parser.add_argument(
        "--questions", type=whole(0), default=500, metavar="N", help="held-out questions, 0 for none (default 500)"
    )
    parser.add_argument(
        "--passages", type=whole(0), default=40, metavar="N", help="passages of text, 0 for none (default 40)"
    )
    parser.add_argument(
        "--methods", nargs="+", default=("trio",), metavar="NAME",
        help="that prune: rows of `lab accuracy`, or module:Class for a selector of your own (default trio)",
    )  # fmt: skip
    parser.add_argument(
        "--retentions", nargs="+", type=SHARE, default=(1.0, 0.111), metavar="R",
        help="shares of the image tokens (default 1 0.111)",
    )  # fmt: skip
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="first test scene (default 0)")
    parser.add_argument("--batch", type=whole(1), default=64, metavar="N", help="questions together (default 64)")
    parser.add_argument("--model", default=BUNDLED_MODEL, metavar="NAME", help="default: the bundled model")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="arithmetic (default float32)")
    shapes = ("vicuna-7b", "mistral-7b", "bundled")
    parser.add_argument("--speed", choices=shapes, metavar="SHAPES", help=f"of: {', '.join(shapes)} (default none)")
    parser.add_argument(
        "--samples", type=whole(1), default=16, metavar="N", help="samples a batch of --speed on a GPU (default 16)"
    )
    parser.add_argument("--rounds", type=whole(1), default=5, metavar="R", help="timed rounds of --speed (default 5)")
    parser.add_argument("--out", metavar="DIR", help="folder for JSON, tables and plot")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report; 1 if states stored bit for bit did not give the very same predictions: then no number here
    counts.
    """
    from trio_ray.lab.accuracy.methods import method_config
    from trio_ray.lab.codecs import study
    from trio_ray.lab.codecs.plot import plot
    from trio_ray.lab.codecs.recipes import Recipe
    from trio_ray.lab.codecs.report import failed_controls, tables
    from trio_ray.lab.codecs.speed import speed_table

    for name in arguments.methods:
        method_config(name, 1.0)
    recipes = [Recipe.parse(text) for text in arguments.codecs]
    for name, count in Counter(recipe.name for recipe in recipes).items():
        if count > 1:
            raise ConfigError("--codecs", f"{name!r} is there {count} times")
    folder = make_folder("--out", arguments.out) if arguments.out else None
    started = time.monotonic()
    questions = _questions(arguments, recipes) if arguments.questions else []
    texts = _texts(arguments.passages, recipes) if arguments.passages else []
    found = tables(questions, texts)
    speeds = []
    if arguments.speed:
        with shown_steps() as show:
            speeds = study.measure_speeds(arguments.speed, recipes, arguments.samples, arguments.rounds, show)
        heading = study.speed_heading(arguments.speed, arguments.samples, arguments.rounds)
        found += [heading, speed_table(speeds)]
    record = {
        "codecs": {recipe.name: recipe.parameters for recipe in recipes},
        "questions": questions,
        "texts": texts,
        "speeds": [asdict(speed) for speed in speeds],
    }
    draw = partial(plot, questions, texts) if questions or texts else None
    written = Study("codecs", record, "\n\n".join(found), draw)
    print(written.text)
    print(f"\n{arguments.questions} questions, {arguments.passages} passages, {time.monotonic() - started:.0f} s")
    if folder:
        print_written(written.write(folder))
    failed = failed_controls([*questions, *texts])
    if failed:
        print(f"the control failed: raw is not exact on {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _questions(arguments: argparse.Namespace, recipes: list[Recipe]) -> list[Record]:
    from trio_ray.lab.codecs.study import QuestionSettings, measure_questions

    settings = QuestionSettings(
        count=arguments.questions,
        first_seed=arguments.first_seed,
        methods=arguments.methods,
        retentions=arguments.retentions,
        batch=arguments.batch,
        model=ModelConfig(name=arguments.model, dtype=arguments.dtype),
    )
    with shown_count("questions", arguments.questions) as show:
        return measure_questions(settings, recipes, show, _warn)


def _texts(passages: int, recipes: list[Recipe]) -> list[Record]:
    from trio_ray.lab.codecs.language_model import HOW_TO_INSTALL, weights_file
    from trio_ray.lab.codecs.study import measure_texts

    if weights_file() is None:
        _warn(f"no text is continued, as SmolLM2-135M-Instruct is not here: {HOW_TO_INSTALL}")
        return []
    with shown_count("passages", passages) as show:
        return measure_texts(passages, recipes, show, _warn)


def _warn(sentence: str) -> None:
    print(sentence, file=sys.stderr)
