"""Accuracy of pruned answers: every setting over the same questions, with one pass of the vision tower for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trio_ray.config import MethodConfig
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.method.method import Method
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.ordered import ordered_map
from trio_ray.source.sample import BadSample

MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class Setting:
    """One line of a table: a method's name at a retention, and what that means."""

    name: str
    retention: float
    config: MethodConfig


@dataclass(frozen=True)
class Result:
    """A setting's answers. `right` (questions,) bool; `tokens` the mean number of image tokens that a layer held."""

    setting: Setting
    answers: list[str]
    right: NDArray[np.bool_]
    tokens: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.mean())


def measure_accuracy(
    replica: Replica,
    questions: Sequence[HeldOutQuestion],
    settings: Sequence[Setting],
    batch: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Answer all questions under each setting.

    Args:
        replica: the model.
        questions: held-out ones; consecutive questions about one image share its encoding.
        settings: what to compare.
        batch: questions in one packed batch.
        on_batch: told the number of questions that all settings have answered.
    """
    answers: list[list[str]] = [[] for _ in settings]
    methods = [setting.config.build(replica.decoder.depth) for setting in settings]
    tokens = np.zeros(len(settings))
    done = 0
    for samples in prepared_batches(replica, questions, batch):
        for number, method in enumerate(methods):
            answers[number] += _answer(replica, samples, method)
            tokens[number] += sum(method.schedule.mean_tokens(sample.image_tokens) for sample in samples)
        done += len(samples)
        on_batch(done)
    truth = [question.answer for question in questions]
    return [
        Result(setting, given, np.array(given) == np.array(truth), float(held / len(questions)))
        for setting, given, held in zip(settings, answers, tokens, strict=True)
    ]


def _answer(replica: Replica, samples: Sequence[PreparedSample], method: Method) -> list[str]:
    return replica.generate(replica.prefill(samples, method).prefixes, MAX_NEW_TOKENS)


def prepared_batches(
    replica: Replica, questions: Sequence[HeldOutQuestion], size: int
) -> Iterator[list[PreparedSample]]:
    preparer = replica.preparer(max_pixels=10**8)
    prepared = ordered_map(preparer.prepare, (question.sample for question in questions), threads=2, lookahead=2 * size)
    samples: list[PreparedSample] = []
    for outcome in prepared:
        if isinstance(outcome, BadSample):
            raise ValueError(f"a rendered question cannot be asked: {outcome}")
        samples.append(outcome)
        if len(samples) == size:
            yield samples
            samples = []
    if samples:
        yield samples
