"""Prefixes that end with the image: any question can follow, as if it had been prefilled with the same kept tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.corpus import make_sample, prepare, samples_of_all_grids
from tests.model.test_continuation import relative_error
from trio_ray.kv.prefix import NoFirstToken, Prefix
from trio_ray.method.method import Method
from trio_ray.method.rows import Positions
from trio_ray.method.schedule import Schedule
from trio_ray.method.selectors.trio import Trio
from trio_ray.method.visionzip import VisionZip
from trio_ray.model.continuation import Continuation
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.prompt import PromptError
from trio_ray.model.replica import Replica
from trio_ray.source.sample import Sample, Turn

SCHEDULE = Schedule(8, (1, 3, 5), retention=0.25)
INSTRUCTION = "describe the picture"
QUESTIONS = [
    "what is the colour of the shape ?",
    "how many",
    "is there a blue circle left of the green square in this picture ? please answer briefly",
    "red",
    "describe it",
]
NEW_TOKENS = 8


def prepare_images(replica: Replica, samples: list[Sample]) -> list[PreparedSample]:
    """Under the generic instruction."""
    preparer = replica.preparer(10**8, instruction=INSTRUCTION)
    prepared = [preparer.prepare(sample) for sample in samples]
    assert all(isinstance(sample, PreparedSample) for sample in prepared)
    return prepared  # type: ignore[return-value]


def image_prefixes(replica: Replica, prepared: list[PreparedSample], method: Method) -> list[Prefix]:
    return replica.prefill(prepared, method, scope="image").prefixes


def asked(samples: list[Sample], question: str) -> list[Sample]:
    """The same images with another question."""
    return [replace(sample, turns=(Turn("user", question),)) for sample in samples]


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_five_later_questions_equal_each_from_scratch_with_the_same_kept_tokens(
    replica: Replica, positions: Positions
) -> None:
    samples = samples_of_all_grids(7)  # one of them with two pictures
    method = Method(SCHEDULE, Trio(), positions)
    prepared = prepare_images(replica, samples)
    prefixes = image_prefixes(replica, prepared, method)
    prompts = [sample.image_part.prompt for sample in prepared if sample.image_part]
    stored = [len(sample.image_part.prompt_ids) for sample in prepared if sample.image_part]
    answers = set()
    for question in QUESTIONS:
        whole = prepare(replica, asked(samples, question))
        kept = [prefix.kept for prefix in prefixes]
        scratch = replica.prefill(whole, method, top_k=40, known=kept).prefixes  # type: ignore[arg-type]
        tails = [list(sample.prompt_ids[held:]) for sample, held in zip(whole, stored, strict=True)]
        logits = Continuation(replica.decoder, prefixes, room=max(map(len, tails))).extend(tails).log_softmax(-1)
        for ours, truth in zip(logits, scratch, strict=True):
            assert relative_error(ours[truth.top_ids.long()], truth.top_logprobs) < 1e-5
        later = replica.ask(prefixes, prompts, [question] * len(prefixes), NEW_TOKENS)
        assert later == replica.generate(scratch, NEW_TOKENS)
        answers.update(later)
    assert len(answers) > 5


def test_ragged_questions_in_one_batch_equal_each_alone(replica: Replica) -> None:
    prepared = prepare_images(replica, samples_of_all_grids(5))
    prefixes = image_prefixes(replica, prepared, Method(SCHEDULE, Trio()))
    prompts = [sample.image_part.prompt for sample in prepared if sample.image_part]
    together = replica.ask(prefixes, prompts, QUESTIONS, NEW_TOKENS)
    alone = [
        replica.ask([prefix], [prompt], [question], NEW_TOKENS)[0]
        for prefix, prompt, question in zip(prefixes, prompts, QUESTIONS, strict=True)
    ]
    assert together == alone


def test_it_is_the_whole_prompts_prefix_without_the_rows_behind_the_last_image(llama: Replica) -> None:
    prepared = prepare_images(llama, samples_of_all_grids(6))
    whole = llama.prefill(prepared, Method(SCHEDULE, Trio())).prefixes
    for sample, cut, full in zip(
        prepared, image_prefixes(llama, prepared, Method(SCHEDULE, Trio())), whole, strict=True
    ):
        assert sample.image_part is not None
        tail = len(sample.prompt_ids) - len(sample.image_part.prompt_ids)
        assert tail == len(INSTRUCTION.split()) + 1
        assert cut.length == full.length - tail
        assert [kept.tolist() for kept in cut.kept] == [kept.tolist() for kept in full.kept]
        for ours, theirs in zip(cut.segments, full.segments, strict=True):
            assert not bool(ours.text[-1])
            for name in ("position", "text"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name)[:-tail])
            assert torch.equal(ours.keys, theirs.keys[:, :-tail])
            assert torch.equal(ours.values, theirs.values[:, :-tail])


def test_with_an_encoder_step_a_question_can_follow_too(llama: Replica) -> None:
    samples, schedule = samples_of_all_grids(4), Schedule(8, (0, 4), retention=0.3, weights=(3, 1))
    prepared = prepare_images(llama, samples)
    method = Method(schedule, Trio(), encoder_reducer=VisionZip())
    prefixes = image_prefixes(llama, prepared, method)
    prompts = [sample.image_part.prompt for sample in prepared if sample.image_part]
    whole = prepare(llama, asked(samples, QUESTIONS[0]))
    scratch = llama.prefill(whole, method, known=[prefix.kept for prefix in prefixes]).prefixes  # type: ignore[arg-type]
    assert llama.ask(prefixes, prompts, QUESTIONS[:1] * 4, NEW_TOKENS) == llama.generate(scratch, NEW_TOKENS)


def test_an_answer_before_any_question_is_refused(llama: Replica) -> None:
    prepared = prepare_images(llama, samples_of_all_grids(2))
    prefixes = image_prefixes(llama, prepared, Method(SCHEDULE, Trio()))
    assert [len(prefix.top_ids) for prefix in prefixes] == [0, 0]
    for answer in (
        lambda: llama.generate(prefixes, 4),
        lambda: llama.converse(prefixes, ["USER: <image>"] * 2).answer(4),
        lambda: [prefix.first_token for prefix in prefixes],
    ):
        with pytest.raises(NoFirstToken, match="ask a question"):
            answer()


def test_a_prompt_that_the_template_does_not_begin_with_is_refused(llama: Replica) -> None:
    prepared = prepare_images(llama, [make_sample([(40, 50)], "red")])
    prefixes = image_prefixes(llama, prepared, Method(SCHEDULE, Trio()))
    with pytest.raises(PromptError, match="in another way"):
        llama.ask(prefixes, ["Picture: <image>"], ["how many"], 4)
    with pytest.raises(PromptError, match="cannot place an image"):
        llama.ask(prefixes, ["USER: <image>"], ["how many in <image>"], 4)
