"""Answers a second: from a cache, pruned anew, and without pruning, each as fast as it goes; and what several questions
on one image gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from trio_ray.cache.fetched import Row
from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.evaluate.prefix_reader import PrefixReader, RestoredBatch
from trio_ray.kv.prefix import Prefix
from trio_ray.lab.prefill.pruned import Pruned
from trio_ray.lab.restore.decode import UNPRUNED_BATCHES, GenerateTimes, generate_unpruned, time_generate
from trio_ray.lab.restore.stored import StoredCache
from trio_ray.model.decode.engine import Answer, Engine, Request
from trio_ray.model.decoder import Decoder
from trio_ray.tensors import measure

ANSWER_TOKENS = (1, 16, 64, 196)
QUESTIONS_AN_IMAGE = 6
QUESTION_TOKENS = 24
IMAGE_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class AnsweringSizes:
    """How much is answered, and how.

    Attributes:
        sequences: decoded at a time, at most.
        answers: of a pass from a cache.
        images: of a pass with several questions on an image.
        threads: that fetch and check.
        rounds: turns.
    """

    sequences: int
    answers: int
    images: int
    threads: int
    rounds: int


def measure_answers(
    caches: Mapping[str, StoredCache],
    prefill: Pruned,
    sizes: AnsweringSizes,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """By length of the answers the answers a second of each contestant.

    Args:
        caches: by where they are.
        prefill: pruned prefill over a workload of the same model.
        sizes: how much is answered, and how.
        on_step: told what begins.
    """
    replica = prefill.replica
    engine = Engine(replica.decoder, sizes.sequences)
    opened = {where: PrunedCache(cache.uri, cache.s3) for where, cache in caches.items()}
    rows = {where: _repeated(cache.rows, sizes.answers) for where, cache in caches.items()}

    def from_cache(where: str, tokens: int) -> int:
        return _answered_from(
            engine, opened[where], rows[where], tokens, sizes.threads, lambda prefix: [Request(0, prefix, tokens)]
        )

    def anew(tokens: int) -> int:
        return _answered(
            engine, (Request(number, prefix, tokens) for number, prefix in enumerate(_pruned_anew(prefill)))
        )

    on_step("transformers' generate: the best batch")
    generate = [
        times
        for batch in UNPRUNED_BATCHES
        if batch <= len(prefill.samples) and (times := time_generate(replica, prefill.samples, batch)) is not None
    ]
    lengths: dict[str, Any] = {}
    for tokens in ANSWER_TOKENS:
        contestants: dict[str, Callable[[], int]] = {
            f"cache in {where}": partial(from_cache, where, tokens) for where in caches
        }
        contestants["pruned anew"] = partial(anew, tokens)
        lengths[str(tokens)] = _rates(contestants, replica.device, sizes.rounds, f"answers of {tokens} tokens", on_step)
        if generate:
            lengths[str(tokens)]["unpruned"] = _unpruned(prefill, generate, tokens)
    return lengths


def measure_questions(
    caches: Mapping[str, StoredCache],
    decoder: Decoder,
    sizes: AnsweringSizes,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Answers a second to several questions on an image, to as many on images of their own, and to stored prompts.

    Args:
        caches: by where they are.
        decoder: of the model.
        sizes, on_step: see `measure_answers`.
    """
    engine = Engine(decoder, sizes.sequences)
    contestants = {
        f"{name}, {where}": contestant
        for where, cache in caches.items()
        for name, contestant in _questions(
            engine, PrunedCache(cache.uri, cache.s3), cache.rows, sizes.images, sizes.threads
        ).items()
    }
    return _rates(contestants, engine.device, sizes.rounds, "several questions on an image", on_step)


def _questions(
    engine: Engine, cache: PrunedCache, rows: Sequence[Row], images: int, threads: int
) -> dict[str, Callable[[], int]]:
    """Six questions behind one stored image; six stored images with a question each; six stored prompts.

    A stored prompt has its question in it, so nothing is left to read before its answer.
    """
    question = list(range(10, 10 + QUESTION_TOKENS))
    own = QUESTION_TOKENS + IMAGE_ANSWER_TOKENS
    wanted = _repeated(rows, images)
    each = [row for row in wanted for _ in range(QUESTIONS_AN_IMAGE)]

    def ask(prefix: Prefix, questions: int) -> list[Request]:
        return [Request(number, prefix, IMAGE_ANSWER_TOKENS, question) for number in range(questions)]

    def answer_prompt(prefix: Prefix) -> list[Request]:
        return [Request(0, prefix, IMAGE_ANSWER_TOKENS)]

    return {
        f"{QUESTIONS_AN_IMAGE} questions on one image": partial(
            _answered_from,
            engine,
            cache,
            wanted,
            QUESTIONS_AN_IMAGE * own,
            threads,
            partial(ask, questions=QUESTIONS_AN_IMAGE),
        ),
        f"{QUESTIONS_AN_IMAGE} images with a question each": partial(
            _answered_from, engine, cache, each, own, threads, partial(ask, questions=1)
        ),
        f"{QUESTIONS_AN_IMAGE} stored prompts": partial(
            _answered_from, engine, cache, each, own, threads, answer_prompt
        ),
    }


def _rates(
    contestants: Mapping[str, Callable[[], int]],
    device: torch.device,
    rounds: int,
    what: str,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Contestants in turns; answers a second."""
    for name, contestant in contestants.items():
        on_step(f"{what}: warm-up, {name}")
        contestant()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        on_step(f"{what}: round {number + 1} of {rounds}")
        for name, contestant in contestants.items():
            rates[name].append(_rate(contestant, device))
    return {name: {"answers_per_s": median(own), "rounds": own} for name, own in rates.items()}


def _rate(contestant: Callable[[], int], device: torch.device) -> float:
    answers: list[int] = []
    seconds = measure(device, lambda: answers.append(contestant())).seconds
    return answers[0] / seconds


def _answered_from(
    engine: Engine,
    cache: PrunedCache,
    rows: Sequence[Row],
    own_rows: int,
    threads: int,
    ask: Callable[[Prefix], list[Request]],
) -> int:
    """Restore and answer as an evaluation does."""
    answers = 0
    with closing(PrefixReader(cache, rows, engine, own_rows, threads)) as reader:
        for step in reader.between_steps():
            if isinstance(step, RestoredBatch):
                for request in (request for sample in step.samples for request in ask(_prefix(sample))):
                    engine.submit(request)
            else:
                answers += _sound(step)
    return answers + _answered(engine, ())


def _answered(engine: Engine, requests: Iterable[Request]) -> int:
    return _sound(engine.run(requests))


def _sound(answers: Iterable[Answer]) -> int:
    number = 0
    for answer in answers:
        if answer.error is not None:
            raise answer.error
        number += 1
    return number


def _pruned_anew(prefill: Pruned) -> Iterator[Prefix]:
    for batch in prefill.batches(0):
        yield from prefill.replica.prefill(batch, prefill.method).batch.split()


def _unpruned(prefill: Pruned, generate: Sequence[GenerateTimes], tokens: int) -> dict[str, Any]:
    best = max(generate, key=lambda times: times.answers_per_s(tokens))
    samples = prefill.samples[: best.batch]
    seconds = measure(prefill.replica.device, lambda: generate_unpruned(prefill.replica, samples, tokens)).seconds
    return {"answers_per_s": best.batch / seconds, "batch": best.batch}


def _repeated(rows: Sequence[Row], wanted: int) -> list[Row]:
    return [rows[number % len(rows)] for number in range(wanted)]


def _prefix(sample: object) -> Prefix:
    assert isinstance(sample, StoredPrefix), sample
    # An object of its own, as requests that name the same prefix share its rows.
    return replace(sample.prefix)
