"""Codecs on held-out questions: what answers become when the pruned prefix has been stored and loaded.

Two ways of going on are measured. `question`: all rows behind the image are decoded again over the stored image rows,
as when another question is asked about a stored image. `last row`: only the last prompt row is, so that the question's
own stored rows count as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trio_ray.calibration.codec_loss import (
    IN_MEMORY,
    UNROUNDED,
    Agreement,
    Loaded,
    Trial,
    agreement,
    greedy,
    in_16_bit,
    predict,
    store_and_load,
    unstored,
    values_of,
)
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.prefix import Prefix
from trio_ray.lab.accuracy.accuracy import MAX_NEW_TOKENS, Setting, prepared_batches
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica

WAYS = ("question", "last row")
"""Which rows of the prompt are computed again over the stored rows."""


@dataclass(frozen=True)
class Answered:
    """An answer from coded states: how well its tokens are predicted, and whether the greedy answer is right."""

    agreement: Agreement
    right: bool


@dataclass
class CodecResult:
    """One codec under one setting, a number each question.

    Attributes:
        setting: how the prefixes were pruned.
        name: of the codec, or of a control.
        answers: by way.
        sizes: bytes of the container; of what is not stored, of keys and values in memory.
        values: numbers in the keys and values that were to be stored.
        unpruned: numbers that keys and values of all rows in all layers would be.
    """

    setting: Setting
    name: str
    answers: dict[str, list[Answered]] = field(default_factory=lambda: {way: [] for way in WAYS})
    sizes: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    unpruned: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """The answers of a batch from 16-bit states that never leave memory, for one of the ways of going on."""

    tails: list[list[int]]
    answers: list[list[int]]
    predictions: list[Tensor]
    right: list[bool]


def measure_codecs(
    replica: Replica,
    questions: Sequence[HeldOutQuestion],
    trials: Sequence[tuple[Setting, Sequence[Trial]]],
    batch: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[CodecResult]:
    """Answer all questions from the prefixes of each setting, stored and loaded by each of its codecs.

    Args:
        replica: the model.
        questions: held-out ones.
        trials: settings with their codecs.
        batch: questions in one packed batch, which is prefilled once a setting.
        on_batch: told the number of questions done.

    Returns:
        For each setting what 16-bit states give that were never stored, with which all else is compared; the unrounded
        states where the model computes in float32; and each codec.
    """
    runs = [SettingRun(replica, setting, codecs) for setting, codecs in trials]
    done = 0
    for samples in prepared_batches(replica, questions, batch):
        truth = [question.answer for question in questions[done : done + len(samples)]]
        for run in runs:
            run.take(samples, truth)
        done += len(samples)
        on_batch(done)
    return [result for run in runs for result in run.results.values()]


def prefill(replica: Replica, samples: Sequence[PreparedSample], setting: Setting) -> PrefixBatch:
    """The batch's prefixes under a setting."""
    config = setting.config
    return replica.prefill(samples, config.build(replica.decoder.depth)).batch


class SettingRun:
    """All codecs under one setting, batch after batch. `results` by name."""

    def __init__(self, replica: Replica, setting: Setting, trials: Sequence[Trial]) -> None:
        self._replica = replica
        self._setting = setting
        self._trials = trials
        self.results: dict[str, CodecResult] = {}

    def take(self, samples: Sequence[PreparedSample], truth: Sequence[str]) -> None:
        """Measure every codec on one more batch, prefilled once."""
        exact = prefill(self._replica, samples, self._setting)
        states = in_16_bit(exact)
        in_memory = unstored(states)
        references = {way: self._reference(in_memory.prefixes, samples, truth, way) for way in WAYS}

        def record(name: str, loaded: Loaded) -> None:
            result = self.results.setdefault(name, CodecResult(self._setting, name))
            for way, reference in references.items():
                result.answers[way] += self._answers(loaded.prefixes, reference, truth)
            result.sizes += loaded.sizes
            result.values += [values_of(prefix) for prefix in in_memory.prefixes]
            result.unpruned += [row * prefix.length for prefix in in_memory.prefixes]

        decoder = self._replica.decoder
        row = 2 * decoder.depth * decoder.kv_heads * decoder.head_dim
        record(IN_MEMORY, in_memory)
        if states is not exact:
            record(UNROUNDED, unstored(exact))
        for trial in self._trials:
            record(trial.name, store_and_load(states, trial.codec))

    def _reference(
        self, prefixes: Sequence[Prefix], samples: Sequence[PreparedSample], truth: Sequence[str], way: str
    ) -> Reference:
        tails = [self._tail(sample) if way == "question" else [sample.input_ids[-1]] for sample in samples]
        answers = self._greedy(prefixes, tails)
        predictions = predict(self._replica.decoder, prefixes, tails, answers)
        right = [self._replica.writer.decode(answer) == true for answer, true in zip(answers, truth, strict=True)]
        return Reference(tails, answers, predictions, right)

    def _answers(self, prefixes: Sequence[Prefix], reference: Reference, truth: Sequence[str]) -> list[Answered]:
        coded = predict(self._replica.decoder, prefixes, reference.tails, reference.answers)
        agreements = [agreement(wanted, got) for wanted, got in zip(reference.predictions, coded, strict=True)]
        right = list(reference.right)
        # Where every token of the reference's answer is the most likely one, it is the greedy answer here too.
        others = [number for number, one in enumerate(agreements) if not all(one.same)]
        if others:
            answers = self._greedy([prefixes[n] for n in others], [reference.tails[n] for n in others])
            for number, answer in zip(others, answers, strict=True):
                right[number] = self._replica.writer.decode(answer) == truth[number]
        return [Answered(*pair) for pair in zip(agreements, right, strict=True)]

    def _greedy(self, prefixes: Sequence[Prefix], tails: Sequence[Sequence[int]]) -> list[list[int]]:
        return greedy(self._replica.decoder, prefixes, tails, MAX_NEW_TOKENS, self._replica.stop_tokens)

    def _tail(self, sample: PreparedSample) -> list[int]:
        """The tokens of the prompt that follow its last image row."""
        ids = list(sample.input_ids)
        return ids[len(ids) - ids[::-1].index(self._replica.image_token_id) :]
