"""Measure what a selection costs in right answers, on rendered scenes or on questions of your own.

Each method answers the same questions at each retention; what is lost beside all tokens is the selection's fault.
Without --input the questions are about rendered scenes that the bundled model never saw. With --input they are the
samples of any corpus that a job can read, with its answers (docs/formats.md says how POPE, GQA, TextVQA and others are
read). With --scope image a selection sees no question, and all questions about an image follow the same prefix.
Settings of `method` that are given by --set or --config make a row "as set". Prints a table; --out DIR writes
accuracy.json, accuracy.md and accuracy.png.

examples:
  trio-ray lab accuracy --questions 2000 --retentions 1 0.111
  trio-ray lab accuracy --model FOLDER --input 'pope/*.parquet' --scorer pope --methods trio random --auto 120
"""

from __future__ import annotations

import argparse
import time
from typing import Literal

from trio_ray.commands._options import SHARE, add_settings_options, make_folder, print_written, settings, whole
from trio_ray.commands._progress import shown_count
from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError
from trio_ray.lab.accuracy.methods import RETENTIONS, method_config, methods, own_config, possible


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--questions", type=whole(1), default=500, metavar="N", help="questions (default 500)")
    parser.add_argument(
        "--input", metavar="URI", nargs="+", help="shards with questions and answers (default: rendered scenes)"
    )
    parser.add_argument(
        "--scope", choices=("prompt", "image"), help="whether a selection sees the question (default prompt)"
    )
    parser.add_argument(
        "--scorer", default="exact", choices=("exact", "vqa", "pope", "multiple_choice"),
        help="how answers are scored (default exact)",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME",
        help="rows of the table (default all), or module:Class for a selector of your own",
    )  # fmt: skip
    parser.add_argument(
        "--layout", choices=("ragged", "uniform"), default="ragged",
        help="uniform: one prune before layer 0, for engines that need it (default ragged)",
    )  # fmt: skip
    parser.add_argument(
        "--full-depth", type=_depth, default=0.0, metavar="F",
        help="share of the layers that run on all image tokens (method.full_depth; default 0); auto: what the search "
        "of --auto chooses, and searched rows are the only ones then",
    )  # fmt: skip
    parser.add_argument(
        "--scenes", default="shapes", metavar="FAMILY", help="which rendered scenes: shapes (default) or signs"
    )
    parser.add_argument(
        "--auto", type=whole(12), metavar="N",
        help="also search a schedule for each selector (method.schedule: auto), on N samples of their own: validation "
        "scenes, or the input behind the questions",
    )  # fmt: skip
    parser.add_argument(
        "--retentions", nargs="+", type=SHARE, default=RETENTIONS, metavar="R",
        help=f"shares of the image tokens (default {' '.join(map(str, RETENTIONS))})",
    )  # fmt: skip
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="first test scene (default 0)")
    parser.add_argument(
        "--batch", type=whole(1), default=64, metavar="N", help="questions packed together (default 64)"
    )
    parser.add_argument("--model", metavar="NAME", help="default: the bundled model")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="arithmetic (default float32)")
    add_settings_options(parser, "source.text=question")
    parser.add_argument("--out", metavar="DIR", help="folder for JSON, table and plot")


def _depth(text: str) -> float | Literal["auto"]:
    return "auto" if text == "auto" else SHARE(text)


def run(arguments: argparse.Namespace) -> int:
    """Measure every method at every retention, and report."""
    from trio_ray.evaluate.scoring.scorers import scorer_named
    from trio_ray.lab.accuracy.accuracy import Setting, measure_accuracy
    from trio_ray.lab.accuracy.found import found_settings
    from trio_ray.lab.accuracy.questions import corpus_questions, held_out_questions
    from trio_ray.lab.accuracy.report import study, summarise
    from trio_ray.lab.scenes import FAMILIES
    from trio_ray.model.replica import Replica

    options = {"input": "input", "model": "model.name", "dtype": "model.dtype", "scope": "cache.scope"}
    config = settings(JobConfig, arguments, options)
    folder = make_folder("--out", arguments.out) if arguments.out else None
    started = time.monotonic()
    if arguments.scenes not in FAMILIES:
        raise ConfigError("--scenes", f"{arguments.scenes!r} is none of {', '.join(FAMILIES)}")
    family = arguments.scenes
    chooses_depth = arguments.full_depth == "auto"
    if chooses_depth and not arguments.auto:
        raise ConfigError("--full-depth", "auto is chosen by a search; give --auto N too")
    depth = 0.0 if chooses_depth else arguments.full_depth
    own = [(share, own_config(config.method, share)) for share in arguments.retentions if share < 1]
    wanted, more = arguments.questions, arguments.auto or 0
    if config.input:
        drawn = corpus_questions(config, wanted + more)
        questions, searched = drawn[:wanted], drawn[wanted:]
    else:
        questions = held_out_questions(wanted, first_seed=arguments.first_seed, family=family)
        searched = held_out_questions(more, split="validation", family=family) if more else []
    compared = [Setting("all tokens", 1.0, method_config("trio", 1.0)) for share in arguments.retentions if share >= 1]
    compared += [
        Setting(name, share, method_config(name, share, arguments.layout, depth))
        for share in arguments.retentions
        for name in arguments.methods or methods()
        if share < 1 and possible(name, arguments.layout, depth)
    ]
    compared += [Setting("as set", share, method) for share, method in own if method is not None]
    replica = Replica.load(config.model, config.prompt)
    compared = [setting.for_views(replica.tiler.side**2) for setting in compared]
    if more:
        found = found_settings(
            replica, searched, compared, config.cache.selected_under, config.pipeline.batch_rows,
            choose_depth=chooses_depth,
        )  # fmt: skip
        if chooses_depth:
            compared = [setting for setting in compared if setting.retention >= 1]
        compared += [setting for setting, _ in found]
        print("\n".join(f"{setting.name}: {schedule}" for setting, schedule in found))
    with shown_count("questions", len(questions)) as show:
        results = measure_accuracy(
            replica, questions, compared, arguments.batch, show,
            instruction=config.cache.selected_under, scorer=scorer_named(arguments.scorer),
        )  # fmt: skip
    table = study(summarise(results, questions))
    print(table.text)
    print(f"{len(questions)} questions, {len(compared)} settings, {replica.device}, {time.monotonic() - started:.0f} s")
    if folder:
        print_written(table.write(folder))
    return 0
