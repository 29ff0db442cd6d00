"""Accuracy of pruned answers: every setting over the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trio_ray.config import MethodConfig
from trio_ray.errors import ConfigError
from trio_ray.evaluate.scoring.exact_match import ExactMatch
from trio_ray.evaluate.scoring.scorer import Scorer, Truth
from trio_ray.kv.prefix import Prefix
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.method.method import Method
from trio_ray.model.image_scope import Scope
from trio_ray.model.prepare import PreparedSample, over_budget
from trio_ray.model.replica import Replica
from trio_ray.ordered import ordered_map
from trio_ray.source.sample import BadSample
from trio_ray.tensors import measure

MAX_NEW_TOKENS = 16
MAX_PIXELS = 10**8
EXACT = ExactMatch()


@dataclass(frozen=True)
class Setting:
    """One line of a table: a method's name at a retention, and what that means."""

    name: str
    retention: float
    config: MethodConfig

    def for_views(self, tokens: int) -> Setting:
        """The setting for a model whose views have so many tokens, which plain downsampling must know."""
        if self.config.selector != "base-view":
            return self
        settings = {"view_tokens": tokens, **self.config.settings}
        return replace(self, config=self.config.model_copy(update={"settings": settings}))


@dataclass(frozen=True)
class Result:
    """A setting's answers.

    Attributes:
        setting: under which they were given.
        answers: one for each question.
        right: (questions,) how right each is, 0 to 1.
        tokens: mean number of image tokens that a layer held, over the questions.
        real: mean number of image tokens that the images really have.
        views: mean number of views (the base view and the tiles) of an image, of several the sum.
        seconds: that the prefills took, the vision tower included.
        nominal: image tokens of the largest image that the model takes (2,880 for LLaVA-NeXT).
    """

    setting: Setting
    answers: list[str]
    right: NDArray[np.float64]
    tokens: float
    real: float
    views: float
    seconds: float
    nominal: int

    @property
    def accuracy(self) -> float:
        """Mean over the questions of how right the answers are."""
        return float(self.right.mean())

    @property
    def rate(self) -> float:
        """Questions prefilled a second."""
        return len(self.answers) / self.seconds


def measure_accuracy(
    replica: Replica,
    questions: Sequence[HeldOutQuestion],
    settings: Sequence[Setting],
    batch: int,
    on_batch: Callable[[int], None] = lambda done: None,
    *,
    instruction: str | None = None,
    scorer: Scorer = EXACT,
) -> list[Result]:
    """Answer all questions under each setting.

    Args:
        replica: the model.
        questions: those about one image follow each other.
        settings: what to compare.
        batch: questions in one packed batch.
        on_batch: told the number of questions that all settings have answered.
        instruction: selects with this in view instead of the question, once for each image, and asks all questions
            about it behind the same prefix (scope image).
        scorer: how answers are scored.

    Raises:
        ConfigError: one of the questions cannot be asked under one of the settings.
    """
    answers: list[list[str]] = [[] for _ in settings]
    methods = [setting.config.build(replica.decoder.depth) for setting in settings]
    tokens, seconds = np.zeros(len(settings)), np.zeros(len(settings))
    real = views = done = 0
    for samples in prepared_batches(replica, questions, batch, instruction):
        for number, method in enumerate(methods):
            _refuse(over_budget(sample, method.schedule) for sample in samples)
            given, took = _answer(replica, samples, method, "image" if instruction else "prompt")
            answers[number] += given
            seconds[number] += took
            tokens[number] += sum(method.schedule.mean_tokens(sample.image_tokens) for sample in samples)
        real += sum(sample.image_tokens for sample in samples)
        views += sum(len(image.tiles) for sample in samples for image in sample.images)
        done += len(samples)
        on_batch(done)
    truths = [Truth((question.answer,)) for question in questions]
    count = len(questions)
    return [
        Result(
            setting,
            given,
            np.array([scorer.score(*pair) for pair in zip(given, truths, strict=True)]),
            float(held / count),
            real / count,
            views / count,
            float(took),
            replica.tiler.nominal_tokens,
        )
        for setting, given, held, took in zip(settings, answers, tokens, seconds, strict=True)
    ]


def _answer(
    replica: Replica, samples: Sequence[PreparedSample], method: Method, scope: Scope
) -> tuple[list[str], float]:
    """Answers to a batch of questions, and the seconds that the prefill of their prompts or images took."""
    # With scope image one prefix serves all questions about an image.
    one_of_image: dict[str, PreparedSample] = {}
    for sample in samples:
        one_of_image.setdefault(sample.images[0].hash, sample)
    chosen = samples if scope == "prompt" else list(one_of_image.values())
    prefixes: list[Prefix] = []
    took = measure(
        replica.device, lambda: prefixes.extend(replica.prefill(chosen, method, scope=scope).prefixes)
    ).seconds
    if scope == "prompt":
        return replica.generate(prefixes, MAX_NEW_TOKENS), took
    of_image = dict(zip(one_of_image, prefixes, strict=True))
    parts = [sample.image_part for sample in samples]
    return replica.ask(
        [of_image[sample.images[0].hash] for sample in samples],
        [part.prompt for part in parts if part],
        [part.turns for part in parts if part],
        MAX_NEW_TOKENS,
    ), took


def prepared_batches(
    replica: Replica, questions: Sequence[HeldOutQuestion], size: int, instruction: str | None = None
) -> Iterator[list[PreparedSample]]:
    """The questions as the model takes them, in batches; with an `instruction` prepared for scope image.

    Raises:
        ConfigError: one of them cannot be asked.
    """
    preparer = replica.preparer(MAX_PIXELS, instruction)
    asked = (question.sample for question in questions)
    samples: list[PreparedSample] = []
    for outcome in ordered_map(preparer.prepare, asked, threads=2, lookahead=2 * size):
        if isinstance(outcome, BadSample):
            _refuse([outcome])
        else:
            samples.append(outcome)
        if len(samples) == size:
            yield samples
            samples = []
    if samples:
        yield samples


def _refuse(outcomes: Iterable[BadSample | None]) -> None:
    """Raise a `ConfigError` at the first sample that cannot be asked."""
    for bad in outcomes:
        if bad is not None:
            raise ConfigError("input", f"sample {bad.key} cannot be asked: {bad.reason}: {bad.detail}")
