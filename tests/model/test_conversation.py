"""Several turns behind a stored prefix: every answer is that of the whole conversation from scratch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.corpus import prepare, samples_of_all_grids
from tests.model.test_image_scope import INSTRUCTION, SCHEDULE, image_prefixes, prepare_images
from trio_ray.kv.prefix import Prefix
from trio_ray.method.method import Method
from trio_ray.method.selectors.trio import Trio
from trio_ray.model.conversation import Conversation
from trio_ray.model.decode.engine import Engine
from trio_ray.model.prompt import PromptError, PromptWriter
from trio_ray.model.replica import Replica
from trio_ray.source.sample import Sample, Turn

METHOD = Method(SCHEDULE, Trio())
TURNS = [
    ["what is the colour ?", "red", "how many circle"],
    ["is there a square ?", "describe it briefly please", "no"],
]
NEW_TOKENS = 7


def from_scratch(replica: Replica, samples: list[Sample], prefixes: list[Prefix], turns: list[list[Turn]]) -> list[str]:
    """Answers to whole conversations, prefilled in one go with the prefixes' kept tokens."""
    whole = prepare(replica, [replace(s, turns=tuple(own)) for s, own in zip(samples, turns, strict=True)])
    kept = [prefix.kept for prefix in prefixes]
    known = replica.prefill(whole, METHOD, known=kept).prefixes  # type: ignore[arg-type]
    return replica.generate(known, NEW_TOKENS)


@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_every_turn_equals_the_whole_conversation_from_scratch(replica: Replica, scope: str) -> None:
    samples = samples_of_all_grids(3)
    if scope == "image":
        prepared = prepare_images(replica, samples)
        prefixes = image_prefixes(replica, prepared, METHOD)
        prompts = [sample.image_part.prompt for sample in prepared if sample.image_part]
        turns: list[list[Turn]] = [[] for _ in samples]
        conversation = replica.converse(prefixes, prompts)
    else:
        prepared = prepare(replica, samples)
        prefixes = replica.prefill(prepared, METHOD).prefixes
        conversation = replica.converse(prefixes, [sample.prompt for sample in prepared])
        turns = [list(sample.turns) for sample in samples]
        answers = conversation.answer(NEW_TOKENS)
        assert answers == from_scratch(replica, samples, prefixes, turns)
        turns = [[*own, Turn("assistant", answer)] for own, answer in zip(turns, answers, strict=True)]
    seen = set()
    for questions in TURNS:
        turns = [[*own, Turn("user", question)] for own, question in zip(turns, questions, strict=True)]
        answers = conversation.ask(questions, NEW_TOKENS)
        assert answers == from_scratch(replica, samples, prefixes, turns)
        turns = [[*own, Turn("assistant", answer)] for own, answer in zip(turns, answers, strict=True)]
        seen.update(answers)
    assert len(seen) > 2


def test_an_answer_that_ends_early_is_followed_by_what_the_template_writes_behind_it(llama: Replica) -> None:
    """The others go on meanwhile."""
    samples = samples_of_all_grids(4)
    prepared = prepare(llama, samples)
    prefixes = llama.prefill(prepared, METHOD).prefixes
    free = llama.converse(prefixes, [sample.prompt for sample in prepared]).answer(NEW_TOKENS)
    word = free[0].split()[1]
    stop = llama.writer.ids(word)[-1]
    stopping = replace(llama, stop_tokens=(stop,))
    prompts = [sample.prompt for sample in prepared]
    together, questions = stopping.converse(prefixes, prompts), ["red", "how many ?", "is it blue", "what"]
    answers = together.answer(NEW_TOKENS)
    assert len({len(answer.split()) for answer in answers}) > 1
    later = together.ask(questions, NEW_TOKENS)
    for number, (prefix, prompt) in enumerate(zip(prefixes, prompts, strict=True)):
        alone = stopping.converse([prefix], [prompt])
        assert alone.answer(NEW_TOKENS) == [answers[number]]
        assert alone.ask([questions[number]], NEW_TOKENS) == [later[number]]


def test_turns_out_of_order_are_refused(llama: Replica) -> None:
    prepared = prepare(llama, samples_of_all_grids(1))
    conversation = llama.converse(llama.prefill(prepared, METHOD).prefixes, [prepared[0].prompt])
    with pytest.raises(PromptError, match=r"answer\(\) before ask\(\)"):
        conversation.ask(["red"], 3)
    conversation.answer(3)
    with pytest.raises(PromptError, match="answered already"):
        conversation.answer(3)


def test_a_prompt_template_has_no_second_turn_and_another_one_is_refused(llama: Replica) -> None:
    (sample,) = prepare(llama, samples_of_all_grids(1))
    prefixes = llama.prefill([sample], METHOD).prefixes
    plain = PromptWriter(llama.writer._processor, llama.image_token_id, "USER: {prompt} ASSISTANT:")
    conversation = Conversation(Engine(llama.decoder), plain, llama.stop_tokens, prefixes, [sample.prompt])
    conversation.answer(3)
    with pytest.raises(PromptError, match="chat template"):
        conversation.ask(["red"], 3)
    (image_only,) = prepare_images(llama, samples_of_all_grids(1))
    assert image_only.image_part is not None
    other = PromptWriter(llama.writer._processor, llama.image_token_id, "please {prompt} ASSISTANT:")
    ask = Conversation(
        Engine(llama.decoder), other, (), image_prefixes(llama, [image_only], METHOD), [image_only.image_part.prompt]
    ).ask
    with pytest.raises(PromptError, match="in another way"):
        ask([INSTRUCTION], 3)


def test_as_many_prompts_as_prefixes_are_wanted(llama: Replica) -> None:
    prepared = prepare(llama, samples_of_all_grids(2))
    with pytest.raises(ValueError, match="1 prompts for 2 prefixes"):
        llama.converse(llama.prefill(prepared, METHOD).prefixes, [prepared[0].prompt])
