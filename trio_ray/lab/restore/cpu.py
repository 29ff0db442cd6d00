"""On a CPU: the bundled model's answers from a cache with the default codec, beside answers that are pruned anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import torch

from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.calibration.choice import DEFAULT_DIVERGENCE
from trio_ray.config import BUNDLED_MODEL, ModelConfig, S3Config
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.prefix import Prefix
from trio_ray.lab.accuracy.accuracy import MAX_NEW_TOKENS, Setting, prepared_batches
from trio_ray.lab.accuracy.methods import method_config
from trio_ray.lab.accuracy.questions import HeldOutQuestion, held_out_questions
from trio_ray.lab.codecs.coded_questions import prefill
from trio_ray.lab.codecs.recipes import TRANSFORM, calibrate_on_questions
from trio_ray.lab.restore.samples import store_prefixes
from trio_ray.lab.restore.stored import write_cache
from trio_ray.method.schedule import DEFAULT_RETENTION
from trio_ray.model.replica import Replica
from trio_ray.tensors import measure

CALIBRATION_QUESTIONS = 96
BATCH = 16


def measure_cpu(folder: Path, questions: int, rounds: int, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Questions a second, in turns, and how many times as many from the cache; and whether the answers are right.

    Args:
        folder: an empty one, for the cache.
        questions: how many.
        rounds: turns.
        on_step: told what begins.
    """
    device = torch.device("cpu")
    on_step("questions about scenes")
    asked = held_out_questions(questions)
    replica = Replica.load(ModelConfig(name=BUNDLED_MODEL), device=device)
    setting = Setting("trio", DEFAULT_RETENTION, method_config("trio", DEFAULT_RETENTION))
    on_step("calibrate the default codec")
    others = held_out_questions(CALIBRATION_QUESTIONS, split="validation")
    fitted = calibrate_on_questions(replica, setting, others, BATCH).choose(DEFAULT_DIVERGENCE)
    assert fitted is not None, "the bundled model's prefixes can be fitted"
    on_step("write the cache")
    prefixes = [prefix for batch in _pruned(replica, asked, setting) for prefix in batch]
    samples = store_prefixes(TRANSFORM, fitted.codec, fitted.basis, PrefixBatch.of(prefixes))
    stored = write_cache(str(folder), S3Config(), samples, 0)
    cache = PrunedCache(stored.uri)

    def from_cache() -> list[str]:
        answers: list[str] = []
        with closing(cache.restored(stored.rows, device, BATCH)) as batches:
            for batch in batches:
                good = [sample.prefix for sample in batch if isinstance(sample, StoredPrefix)]
                answers += replica.generate(good, MAX_NEW_TOKENS)
        return answers

    def anew() -> list[str]:
        batches = (replica.generate(batch, MAX_NEW_TOKENS) for batch in _pruned(replica, asked, setting))
        return list(itertools.chain.from_iterable(batches))

    contestants = {"from the cache": from_cache, "pruned anew": anew}
    right = {
        name: sum(answer == question.answer for answer, question in zip(answer_all(), asked, strict=True))
        for name, answer_all in contestants.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        on_step(f"round {number + 1} of {rounds}")
        for name, contestant in contestants.items():
            seconds[name].append(measure(device, contestant).seconds)
    return {
        "questions": questions,
        "ratio": samples.plain_bytes / samples.stored_bytes,
        "times": median(a / b for a, b in zip(seconds["pruned anew"], seconds["from the cache"], strict=True)),
        "contestants": {
            name: {"questions_per_s": questions / median(own), "right": right[name], "rounds": own}
            for name, own in seconds.items()
        },
    }


def _pruned(replica: Replica, asked: Sequence[HeldOutQuestion], setting: Setting) -> list[list[Prefix]]:
    """Images decoded and tiled, encoded, and pruned."""
    return [prefill(replica, batch, setting).split() for batch in prepared_batches(replica, asked, BATCH)]
