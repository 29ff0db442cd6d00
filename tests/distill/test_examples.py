"""Training sees what answering sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.distill.config import StudentConfig
from trio_ray.distill.examples import Example, collate
from trio_ray.distill.loss import IGNORED
from trio_ray.distill.stream import CachedSample
from trio_ray.distill.student import build_student
from trio_ray.distill.teacher import StoredTeacher
from trio_ray.distill.training import student_logits
from trio_ray.method.selectors.selector import Positions
from trio_ray.model.continuation import Continuation
from trio_ray.model.replica import Replica


@pytest.fixture
def examples(cache: PrunedCache) -> list[Example]:
    return StoredTeacher().examples([CachedSample(row, cache.embeds(row)) for row in cache.table.to_pylist()])


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_logits_in_training_are_those_of_decoding_behind_the_prefix(
    llama: Replica, model_folders: dict[str, Path], examples: list[Example], positions: Positions
) -> None:
    """Of a student with all layers, in a padded batch: so nothing of a neighbour or of the padding is seen, and the
    vision tower, which is taken away, is not needed.
    """
    student = build_student(model_folders["llama"], StudentConfig(layers=8), seed=0)
    del student.model.vision_tower
    batch = collate(examples, positions)
    assert not bool(batch.real.all())
    with torch.no_grad():
        logits = student_logits(student, batch)
    expected = []
    for example in examples:
        words = logits.shape[1]
        (prefix,) = llama.prefill_embeds([example.embeds], top_k=words, positions=positions)
        expected.append(torch.empty(1, words).scatter(1, prefix.top_ids[None].long(), prefix.top_logprobs[None]))
        forced = example.targets.answer[:-1].tolist()
        if forced:
            expected.append(Continuation(llama.decoder, [prefix], len(forced)).score([forced])[0].log_softmax(-1))
    torch.testing.assert_close(logits.log_softmax(-1), torch.cat(expected), atol=2e-5, rtol=0)


def test_each_place_has_its_token_and_what_the_teacher_says_of_it(examples: list[Example]) -> None:
    batch = collate(examples, "compact")
    assert len(batch.places) == sum(len(example.targets.answer) for example in examples)
    at = 0
    for example in examples:
        answer = example.targets.answer
        labels = batch.labels[at : at + len(answer)]
        assert labels.tolist() == (answer.tolist() if example.targets.true else [IGNORED] * len(answer))
        at += len(answer)
    assert torch.equal(batch.ids, torch.cat([example.targets.ids for example in examples]))
    assert batch.taught.tolist() == list(range(at))
    true = sum(len(example.targets.answer) for example in examples if example.targets.true)
    assert batch.counts == (true, at)
    assert true < at


def test_a_teacher_may_speak_of_an_answers_first_tokens_alone(examples: list[Example]) -> None:
    first, second = examples[:2]
    short = replace(
        first, targets=replace(first.targets, ids=first.targets.ids[:1], logprobs=first.targets.logprobs[:1])
    )
    batch = collate([short, second], "compact")
    beyond = len(first.targets.answer)
    assert batch.taught.tolist() == [0, *range(beyond, beyond + len(second.targets.answer))]
