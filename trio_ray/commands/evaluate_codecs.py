"""The part of `trio-ray evaluate` that measures codecs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from trio_ray.commands.outputs import make_folder
from trio_ray.config import ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.lab.accuracy.methods import method_config

if TYPE_CHECKING:
    from trio_ray.calibration.codec_loss import Trial
    from trio_ray.lab.codecs.recipes import Calibrate, Recipe
    from trio_ray.lab.codecs.report import Record

METHODS = ("trio",)
RETENTIONS = (1.0, 0.111)
CODECS = ("raw", "fp8", "int8", "int4", "int3", "int2", "transform")
CALIBRATION_QUESTIONS = 256
"""Asked about validation scenes, for codecs that must be fitted."""

PASSAGES = 40
PREFIX_TOKENS = 384
FOLLOWING_TOKENS = 128
PASSAGES_AT_ONCE = 4


def measure_codecs(arguments: argparse.Namespace) -> int:
    """Questions to the vision model, text to the language model; a table, JSON and a plot of both.

    Returns:
        0, or 1 if states stored bit for bit did not give the very same predictions: then no number here counts.
    """
    from trio_ray.lab.codecs.plot import plot
    from trio_ray.lab.codecs.recipes import Recipe
    from trio_ray.lab.codecs.report import failed_controls, markdown

    passages = PASSAGES if arguments.passages is None else arguments.passages
    if passages < 0:
        raise ConfigError("--passages", f"{passages} must be at least 0")
    recipes = [Recipe.parse(text) for text in arguments.codecs or CODECS]
    for name, count in Counter(recipe.name for recipe in recipes).items():
        if count > 1:
            raise ConfigError("--codecs", f"{name!r} is there {count} times")
    folder = make_folder("--out", arguments.out) if arguments.out else None
    started = time.monotonic()
    questions = measure_questions(arguments, recipes) if arguments.questions else []
    texts = measure_texts(passages, recipes) if passages else []
    table = markdown(questions, texts)
    print(table)
    print(f"\n{arguments.questions} questions, {passages} passages, {time.monotonic() - started:.0f} s")
    if folder:
        codecs = {recipe.name: recipe.parameters for recipe in recipes}
        everything = {"codecs": codecs, "questions": questions, "texts": texts}
        (folder / "codecs.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        (folder / "codecs.md").write_text(table + "\n", encoding="utf-8")
        plot(questions, texts, str(folder / "codecs.png"))
        print(f"written: {folder}/codecs.json, codecs.md, codecs.png")
    failed = failed_controls([*questions, *texts])
    if failed:
        print(f"the control failed: raw is not exact on {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure_questions(arguments: argparse.Namespace, recipes: Sequence[Recipe]) -> list[Record]:
    """Held-out questions, at each retention by each method."""
    from trio_ray.lab.accuracy.accuracy import Setting
    from trio_ray.lab.accuracy.questions import held_out_questions
    from trio_ray.lab.codecs.coded_questions import measure_codecs
    from trio_ray.lab.codecs.recipes import calibrate_on_questions
    from trio_ray.lab.codecs.report import question_records
    from trio_ray.model.replica import Replica

    questions = held_out_questions(arguments.questions, first_seed=arguments.first_seed)
    fitted = any(recipe.fit is not None for recipe in recipes)
    others = held_out_questions(CALIBRATION_QUESTIONS, split="validation") if fitted else []
    replica = Replica.load(ModelConfig(name=arguments.model, dtype=arguments.dtype))
    runs = []
    for retention in arguments.retentions or RETENTIONS:
        for name in arguments.methods or METHODS if retention < 1 else ["trio"]:
            setting = Setting(name if retention < 1 else "all tokens", retention, method_config(name, retention))
            calibration = cache(partial(calibrate_on_questions, replica, setting, others, arguments.batch))
            runs.append((setting, _trials(recipes, calibration, f"{name} at {retention:.3g}")))
    results = measure_codecs(replica, questions, runs, arguments.batch, _progress("questions", len(questions)))
    return question_records(results, [question.scene for question in questions])


def measure_texts(passages: int, recipes: Sequence[Recipe]) -> list[Record]:
    """Text continued by the pretrained language model; says what to install and measures nothing if it is not here."""
    from trio_ray.lab.codecs.continued_text import measure_text, passages_of, spread
    from trio_ray.lab.codecs.language_model import HOW_TO_INSTALL, LanguageModel, weights_file
    from trio_ray.lab.codecs.recipes import calibrate_on_text
    from trio_ray.lab.codecs.report import text_records
    from trio_ray.model.decoder import default_device

    if weights_file() is None:
        print(f"no text is continued, as SmolLM2-135M-Instruct is not here: {HOW_TO_INSTALL}", file=sys.stderr)
        return []
    model = LanguageModel.load(default_device())
    measured, others = spread(passages_of(model.tokenizer, PREFIX_TOKENS, FOLLOWING_TOKENS), passages)
    calibration = cache(partial(calibrate_on_text, model, others, PASSAGES_AT_ONCE))
    trials = _trials(recipes, calibration, "continued text")
    results = measure_text(model, measured, trials, PASSAGES_AT_ONCE, _progress("passages", len(measured)))
    return text_records(results)


def _trials(recipes: Sequence[Recipe], calibration: Calibrate, where: str) -> list[Trial]:
    """All codecs that can be had, and a line for each that cannot."""
    trials = [(recipe.name, recipe.trial(calibration)) for recipe in recipes]
    for name, trial in trials:
        if trial is None:
            print(f"{name} is left out for {where}: no basis comes so close", file=sys.stderr)
    return [trial for _, trial in trials if trial is not None]


def _progress(what: str, count: int) -> Callable[[int], None]:
    started = time.monotonic()

    def show(done: int) -> None:
        left = (time.monotonic() - started) * (count - done) / done
        end = "\n" if done == count else ""
        print(f"\r{done} of {count} {what}, {left:.0f} s left ", end=end, file=sys.stderr, flush=True)

    return show
