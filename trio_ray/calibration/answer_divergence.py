"""How far pruning moves a model's answers: the divergence from the unpruned model, over the tokens of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from trio_ray.kv.prefix import Prefix
from trio_ray.method.method import Method
from trio_ray.method.rows import PackedRows
from trio_ray.model.attention import packed_attention
from trio_ray.model.continuation import Continuation
from trio_ray.model.decode.engine import generate
from trio_ray.model.image_scope import Scope, up_to_images
from trio_ray.model.packing import pack
from trio_ray.model.prefill import Prefill, pruned_prefills
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica

ANSWER_TOKENS = 8
"""Tokens of an answer that are compared."""

STORED_AT_ONCE = 1.0
"""Image rows of the methods that share their layers, in those of an unpruned prefill, which has to fit anyway."""

GENERIC_QUESTIONS = (
    "What is in the image?",
    "Describe the objects in the image and where they are.",
    "What text is written in the image?",
)
"""Asked of an image where a cache is made before the questions are known, and the corpus has none about it."""


@dataclass(frozen=True)
class _Asked:
    """A question behind a prefix, and what the unpruned model says.

    Attributes:
        sample: number in its batch.
        question: token ids behind the stored prefix; none where the prompt holds the question.
        answer: the unpruned model's greedy answer, token ids.
        reference: (answer tokens, vocabulary) fp32 log-probabilities.
    """

    sample: int
    question: tuple[int, ...]
    answer: tuple[int, ...]
    reference: Tensor


@dataclass(frozen=True)
class ReferenceBatch:
    """Samples with what the unpruned model says about them; the vision tower has done its part.

    Attributes:
        samples: of the batch.
        hidden: (T, d) input embeddings.
        rows: their layout.
        scope: how far a prefix goes.
        asked: one or more for each sample, in the samples' order.
    """

    samples: Sequence[PreparedSample]
    hidden: Tensor
    rows: PackedRows
    scope: Scope
    asked: Sequence[_Asked]

    @torch.no_grad()
    def divergences(self, replica: Replica, methods: Sequence[Method]) -> list[list[float]]:
        """Divergence of the unpruned distribution from the pruned one (KL, nats): for each method and sample, the mean
        over the tokens of its answers.

        Methods that run the same layers on all tokens share these layers (`pruned_prefills`), in groups whose stored
        rows have room beside each other.
        """
        found: list[list[float]] = []
        for group in self._groups(methods):
            prefills = _prefills(replica, self.samples, self.hidden, self.rows, group)
            found += [self._of_prefill(replica, prefill) for prefill in prefills]
        return found

    def _of_prefill(self, replica: Replica, prefill: Prefill) -> list[float]:
        pruned = _distributions(replica, prefill, self.scope, [(a.sample, a.question, a.answer) for a in self.asked])
        found = []
        for _, of_sample in groupby(zip(self.asked, pruned, strict=True), key=lambda pair: pair[0].sample):
            tokens = [(asked.reference.exp() * (asked.reference - rows)).sum(-1) for asked, rows in of_sample]
            found.append(float(torch.cat(tokens).mean()))
        return found

    def _groups(self, methods: Sequence[Method]) -> Iterator[list[Method]]:
        """Methods, in order, that together store no more image rows than `STORED_AT_ONCE` says."""
        tokens = sum(sample.image_tokens for sample in self.samples)
        group: list[Method] = []
        stored = 0.0
        for method in methods:
            size = sum(method.schedule.mean_tokens(sample.image_tokens) for sample in self.samples) / tokens
            if group and stored + size > STORED_AT_ONCE:
                yield group
                group, stored = [], 0.0
            group.append(method)
            stored += size
        if group:
            yield group


@torch.no_grad()
def reference_batches(
    replica: Replica, samples: Sequence[PreparedSample], scope: Scope, batch_rows: int
) -> Iterator[ReferenceBatch]:
    """Batches of samples with the unpruned model's answers.

    Args:
        replica: the model.
        samples: for scope image prepared under an instruction; one prefix an image is then made, which all questions
            about it follow: the corpus's own, or generic ones where it has none.
        scope: of the cache that is to be made.
        batch_rows: rows of a batch.
    """
    questions = _own_questions(replica, samples) if scope == "image" else {}
    chosen = list({sample.images[0].hash: sample for sample in samples}.values()) if questions else samples
    for batch in pack(chosen, batch_rows):
        hidden, rows = replica.embed(batch)
        (unpruned,) = _prefills(replica, batch, hidden, rows, [Method.unpruned(replica.decoder.depth)])
        wanted = [
            (number, question)
            for number, sample in enumerate(batch)
            for question in (questions[sample.images[0].hash] if questions else [()])
        ]
        asked = _answered(replica, unpruned, scope, wanted)
        yield ReferenceBatch(batch, hidden, rows, scope, asked)


def _own_questions(replica: Replica, samples: Sequence[PreparedSample]) -> dict[str, list[tuple[int, ...]]]:
    """Questions about each image, by its hash, as the tokens that follow its prefix."""
    questions: dict[str, list[tuple[int, ...]]] = {}
    for sample in samples:
        assert sample.image_part is not None
        prompt, turns = sample.image_part.prompt, sample.image_part.turns
        known = questions.setdefault(sample.images[0].hash, [])
        if turns and turns[-1].role == "user" and turns[-1].text.strip():
            known.append(tuple(replica.question_tokens(prompt, turns)))
    for sample in samples:
        part = sample.image_part
        if part is not None and not questions[sample.images[0].hash]:
            generic = [tuple(replica.question_tokens(part.prompt, question)) for question in GENERIC_QUESTIONS]
            questions[sample.images[0].hash] = generic
    return questions


def _answered(
    replica: Replica, unpruned: Prefill, scope: Scope, wanted: Sequence[tuple[int, tuple[int, ...]]]
) -> list[_Asked]:
    prefixes = _prefixes(unpruned, scope)
    questions = [question for _, question in wanted] if scope == "image" else None
    answers = generate(
        replica.decoder, [prefixes[number] for number, _ in wanted], ANSWER_TOKENS, replica.stop_tokens, questions
    )
    told = [(number, question, tuple(answer)) for (number, question), answer in zip(wanted, answers, strict=True)]
    references = _distributions(replica, unpruned, scope, told)
    return [_Asked(*one, reference) for one, reference in zip(told, references, strict=True)]


def _prefills(
    replica: Replica, samples: Sequence[PreparedSample], hidden: Tensor, rows: PackedRows, methods: Sequence[Method]
) -> list[Prefill]:
    choices = [(method, [method.schedule.counts(sample.image_tokens) for sample in samples]) for method in methods]
    return pruned_prefills(replica.decoder, hidden, rows, choices, packed_attention(replica.attention))


def _prefixes(prefill: Prefill, scope: Scope) -> list[Prefix]:
    batch = prefill.prefixes(0 if scope == "image" else 1)
    return (up_to_images(batch, prefill.rows.tails) if scope == "image" else batch).split()


def _distributions(
    replica: Replica,
    prefill: Prefill,
    scope: Scope,
    told: Sequence[tuple[int, tuple[int, ...], tuple[int, ...]]],
) -> list[Tensor]:
    """For each (sample, question, answer): (answer tokens, vocabulary) fp32 log-probabilities of the answer's places,
    given the tokens before each of them.
    """
    first = prefill.logits.log_softmax(-1) if scope == "prompt" else None
    tokens = [[*question, *answer[:-1]] for _, question, answer in told]
    following = [number for number, run in enumerate(tokens) if run]
    rows: dict[int, Tensor] = {}
    if following:
        prefixes = _prefixes(prefill, scope)
        behind = Continuation(
            replica.decoder, [prefixes[told[n][0]] for n in following], room=max(len(tokens[n]) for n in following)
        )
        scored = behind.score([tokens[n] for n in following])
        rows = {n: logits.log_softmax(-1) for n, logits in zip(following, scored, strict=True)}
    found = []
    for number, (sample, question, answer) in enumerate(told):
        parts = [] if first is None else [first[sample : sample + 1]]
        if number in rows:
            parts.append(rows[number][max(0, len(question) - 1) :])
        found.append(torch.cat(parts)[: len(answer)])
    return found
