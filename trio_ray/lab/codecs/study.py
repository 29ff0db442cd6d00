"""What codecs cost in quality and how fast they are: questions to the vision model, continued text, made-up states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from trio_ray.calibration.codec_loss import Trial
from trio_ray.config import ModelConfig
from trio_ray.estimate.made_up_states import GEOMETRIES
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.lab.accuracy.accuracy import Setting
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import held_out_questions
from trio_ray.lab.codecs.coded_questions import measure_codecs
from trio_ray.lab.codecs.continued_text import measure_text, passages_of, spread
from trio_ray.lab.codecs.language_model import LanguageModel
from trio_ray.lab.codecs.made_up_bases import fit_transform
from trio_ray.lab.codecs.recipes import Calibrate, Recipe, calibrate_on_questions, calibrate_on_text
from trio_ray.lab.codecs.report import Record, question_records, text_records
from trio_ray.lab.codecs.speed import CodecBenchmark, CodecSpeed
from trio_ray.model.decoder import default_device
from trio_ray.model.replica import Replica

CALIBRATION_QUESTIONS = 256
"""Asked about validation scenes, for codecs that must be fitted."""

PREFIX_TOKENS = 384
FOLLOWING_TOKENS = 128
PASSAGES_AT_ONCE = 4


@dataclass(frozen=True)
class QuestionSettings:
    """Which questions are asked, how they are pruned, and of which model.

    Attributes:
        count, first_seed: of the held-out questions and their scenes.
        methods, retentions: each method prunes at each retention; at a retention of 1 nothing is pruned.
        batch: questions packed together.
        model: that is asked.
    """

    count: int
    first_seed: int
    methods: Sequence[str]
    retentions: Sequence[float]
    batch: int
    model: ModelConfig


def measure_questions(
    settings: QuestionSettings,
    recipes: Sequence[Recipe],
    on_done: Callable[[int], None],
    on_left_out: Callable[[str], None],
) -> list[Record]:
    """Make one record for each retention, method and codec.

    Args:
        settings: of the questions.
        recipes: the codecs.
        on_done: told how many questions are done.
        on_left_out: told of each codec that no basis makes close enough.
    """
    questions = held_out_questions(settings.count, first_seed=settings.first_seed)
    fitted = any(recipe.fit is not None for recipe in recipes)
    others = held_out_questions(CALIBRATION_QUESTIONS, split="validation") if fitted else []
    replica = Replica.load(settings.model)
    runs = []
    for retention in settings.retentions:
        for name in settings.methods if retention < 1 else ["trio"]:
            setting = Setting(name if retention < 1 else "all tokens", retention, method_config(name, retention))
            calibration = cache(partial(calibrate_on_questions, replica, setting, others, settings.batch))
            runs.append((setting, _trials(recipes, calibration, f"{name} at {retention:.3g}", on_left_out)))
    results = measure_codecs(replica, questions, runs, settings.batch, on_done)
    return question_records(results, [question.scene for question in questions])


def measure_texts(
    passages: int, recipes: Sequence[Recipe], on_done: Callable[[int], None], on_left_out: Callable[[str], None]
) -> list[Record]:
    """One record for each codec, from text that the pretrained language model continues. It must be installed."""
    model = LanguageModel.load(default_device())
    measured, others = spread(passages_of(model.tokenizer, PREFIX_TOKENS, FOLLOWING_TOKENS), passages)
    calibration = cache(partial(calibrate_on_text, model, others, PASSAGES_AT_ONCE))
    trials = _trials(recipes, calibration, "continued text", on_left_out)
    return text_records(measure_text(model, measured, trials, PASSAGES_AT_ONCE, on_done))


def measure_speeds(
    shapes: str, recipes: Sequence[Recipe], samples: int, rounds: int, on_codec: Callable[[str], None]
) -> list[CodecSpeed]:
    """How fast each codec is on made-up states, and how large they get.

    Args:
        shapes: decoder whose states are made up, of `GEOMETRIES`.
        recipes: the codecs; those with a basis get one that is fitted to other made-up states.
        samples: in a batch on a GPU.
        rounds: timed rounds of each codec.
        on_codec: told which codec is measured.

    Raises:
        ConfigError: no basis gives the ratio that a recipe asks for.
    """
    benchmark = CodecBenchmark.make(GEOMETRIES[shapes], samples, default_device(), rounds)
    speeds = []
    for recipe in recipes:
        on_codec(recipe.name)
        if recipe.fit is None:
            speeds.append(benchmark.measure(recipe.name, make_codec(full_spec(recipe.spec))))
        else:
            codec, basis = fit_transform(recipe.spec, recipe.fit, benchmark.geometry, benchmark.longest_and_shortest)
            speeds.append(benchmark.measure(recipe.name, codec, basis))
    return speeds


def speed_heading(shapes: str, samples: int, rounds: int) -> str:
    """What the table of speeds measures, and where."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{shapes}, {where}, batches of {samples}, medians of {rounds} rounds; rates in GB/s of 16-bit keys and "
        "values, zstd (one core) and frames (GPU) of coded bytes; states and their bases are made up"
    )


def _trials(
    recipes: Sequence[Recipe], calibration: Calibrate, where: str, on_left_out: Callable[[str], None]
) -> list[Trial]:
    """All codecs that can be made."""
    trials = [(recipe.name, recipe.trial(calibration)) for recipe in recipes]
    for name, trial in trials:
        if trial is None:
            on_left_out(f"{name} is left out for {where}: no basis comes so close")
    return [trial for _, trial in trials if trial is not None]
