"""A teacher's word on true answers: the distribution at each token, as a pass over the stored prefix would say it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.corpus import make_sample, samples_of_all_grids, words
from tests.model.test_image_scope import INSTRUCTION
from trio_ray.errors import ConfigError
from trio_ray.method.method import Method
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.continuation import Continuation
from trio_ray.model.prepare import AnswerTokens, PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.model.targets import answer_targets

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.3)
STOP = 2


def prepared_with_answers(replica: Replica, answers: list[str | None], scope: str = "prompt") -> list[PreparedSample]:
    samples = [replace(s, answer=a) for s, a in zip(samples_of_all_grids(len(answers)), answers, strict=True)]
    instruction = INSTRUCTION if scope == "image" else None
    preparer = replica.preparer(10**8, instruction, with_answers=True)
    return [preparer.prepare(sample) for sample in samples]  # type: ignore[misc]


@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_targets_equal_a_separate_pass_over_each_prefix(replica: Replica, scope: str) -> None:
    answers = ["red", None, "two and three", "no", "a blue circle left of the green square", None]
    prepared = prepared_with_answers(replica, answers, scope)
    batch = replica.prefill(prepared, Method(SCHEDULE, Trio()), top_k=6, scope=scope).batch  # type: ignore[arg-type]
    targets = answer_targets(replica.decoder, batch, [sample.answer_tokens for sample in prepared], 6).split()
    assert [item is None for item in targets] == [answer is None for answer in answers]
    for sample, prefix, item in zip(prepared, batch.split(), targets, strict=True):
        if item is None or sample.answer_tokens is None:
            continue
        before, ids = sample.answer_tokens.before, sample.answer_tokens.ids
        assert item.ids.shape == item.logprobs.shape == (len(ids), 6)
        forced = [*before, *ids[:-1]]
        logits = Continuation(replica.decoder, [prefix], room=len(forced)).score([forced])[0]
        truth = logits.log_softmax(-1)[len(before) - 1 :] if before else logits.log_softmax(-1)
        at = 0 if before else 1
        if not before:
            assert torch.equal(item.ids[0], prefix.top_ids)
            assert torch.equal(item.logprobs[0], prefix.top_logprobs)
        assert torch.allclose(item.logprobs[at:], truth.gather(1, item.ids[at:].long()), atol=1e-5)
        assert torch.allclose(item.logprobs[at:], truth.topk(6).values, atol=1e-5)


def test_an_answers_tokens_are_those_that_the_template_writes_behind_the_prompt(llama: Replica) -> None:
    sample = replace(make_sample([(40, 50)], "what is the colour ?"), answer="dark blue")
    for instruction in (None, INSTRUCTION):
        prepared = llama.preparer(10**8, instruction, with_answers=True).prepare(sample)
        assert isinstance(prepared, PreparedSample)
        assert prepared.answer_tokens is not None
        before = llama.writer.ids("what is the colour ? ASSISTANT:") if instruction else []
        assert prepared.answer_tokens == AnswerTokens(tuple(before), (*llama.writer.ids("dark blue"), STOP))
    assert llama.preparer(10**8).prepare(sample).answer_tokens is None  # type: ignore[union-attr]


def test_an_answer_of_its_stop_token_alone_has_the_prompts_own_distribution(llama: Replica) -> None:
    prepared = prepared_with_answers(llama, ["red", "red"])
    batch = llama.prefill(prepared, Method(SCHEDULE, Trio()), top_k=3).batch
    targets = answer_targets(llama.decoder, batch, [AnswerTokens((), (STOP,)), None], 3).split()
    assert targets[1] is None
    assert targets[0] is not None
    assert torch.equal(targets[0].ids, batch.top_ids[:1])


def test_without_any_answer_there_is_nothing(llama: Replica) -> None:
    prepared = prepared_with_answers(llama, [None, None])
    batch = llama.prefill(prepared, Method(SCHEDULE, Trio()), top_k=3).batch
    assert answer_targets(llama.decoder, batch, [None, None], 3).split() == [None, None]


def test_an_answer_beyond_the_context_is_none(llama: Replica) -> None:
    sample = make_sample([(40, 50)], "red")
    rows = llama.preparer(10**8).prepare(sample).rows  # type: ignore[union-attr]
    room = llama.decoder.context - rows - 1  # for the stop token
    for length, fits in ((room, True), (room + 1, False)):
        preparer = llama.preparer(10**8, with_answers=True)
        prepared = preparer.prepare(replace(sample, answer=words(length)))
        assert (prepared.answer_tokens is not None) is fits  # type: ignore[union-attr]


def test_a_model_without_a_stop_token_cannot_have_targets(llama: Replica) -> None:
    with pytest.raises(ConfigError, match="eos_token_id") as caught:
        replace(llama, stop_tokens=()).preparer(10**8, with_answers=True)
    assert caught.value.field == "cache.targets"
