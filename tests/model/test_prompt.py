"""Prompt ids equal the model's own processor's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import CHATML, LLAMA3, MISTRAL, STANDINS, VICUNA, change_json
from tests.model.corpus import hugging_face_inputs, make_sample, picture, png, prepare, samples_of_all_grids, words
from trio_ray.model.loading import load_processor
from trio_ray.model.prepare import SamplePreparer
from trio_ray.model.prompt import PromptError, PromptWriter
from trio_ray.model.replica import Replica
from trio_ray.source.sample import BadSample, Reason, Sample, Turn

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


CONVERSATIONS = {
    "no_marker": ([Turn("user", "what is it ?")], 1, [("user", [IMAGE, text("what is it ?")])]),
    "marker_first": ([Turn("user", "<image>\nwhat is it ?")], 1, [("user", [IMAGE, text("what is it ?")])]),
    "marker_last": ([Turn("user", "what is it ?\n<image>")], 1, [("user", [text("what is it ?"), IMAGE])]),
    "two_images_no_marker": ([Turn("user", "how many ?")], 2, [("user", [IMAGE, IMAGE, text("how many ?")])]),
    "two_images_between_text": (
        [Turn("user", "this <image> and <image> answer")], 2,
        [("user", [text("this "), IMAGE, text(" and "), IMAGE, text(" answer")])],
    ),
    "several_turns": (
        [Turn("user", "<image>\nwhat ?"), Turn("assistant", "red"), Turn("user", "how many ?")], 1,
        [("user", [IMAGE, text("what ?")]), ("assistant", [text("red")]), ("user", [text("how many ?")])],
    ),
    "image_in_a_later_turn": (
        [Turn("user", "is it ?"), Turn("assistant", "no"), Turn("user", "<image>\nhow many ?")], 1,
        [("user", [text("is it ?")]), ("assistant", [text("no")]), ("user", [IMAGE, text("how many ?")])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_chat_template_prompts_equal_the_processors_input_ids(
    name: str, llama: Replica, processors: dict[str, Any]
) -> None:
    turns, images, parts = CONVERSATIONS[name]
    pictures = tuple(png(picture(30 + 9 * number, 44, number)) for number in range(images))
    sample = Sample("key", 0, pictures, tuple(turns))
    (prepared,) = prepare(llama, [sample])
    messages = [{"role": role, "content": content} for role, content in parts]
    prompt = processors["llama"].apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = hugging_face_inputs(processors["llama"], sample, prompt)
    assert list(prepared.input_ids) == inputs["input_ids"][0].tolist()


def test_input_ids_equal_the_processors_for_every_grid(llama: Replica, processors: dict[str, Any]) -> None:
    samples = samples_of_all_grids(40)
    for sample, ready in zip(samples, prepare(llama, samples), strict=True):
        inputs = hugging_face_inputs(processors["llama"], sample, ready.prompt)
        assert list(ready.input_ids) == inputs["input_ids"][0].tolist()
        assert ready.rows == inputs["input_ids"].shape[1]
        assert ready.image_tokens == int((inputs["input_ids"] == llama.image_token_id).sum())
        assert sum(token == llama.image_token_id for token in ready.prompt_ids) == len(sample.images)


def test_a_template_string_takes_the_place_of_the_chat_template(llama: Replica, processors: dict[str, Any]) -> None:
    writer = PromptWriter(processors["llama"], llama.image_token_id, "USER: {prompt} answer briefly ASSISTANT:")
    prompt = writer.text([Turn("user", "what is it ?")], 2)
    sample = make_sample([(40, 50), (9, 9)], "")
    assert prompt.split() == ["USER:", "<image><image>", "what", "is", "it", "?", "answer", "briefly", "ASSISTANT:"]
    inputs = hugging_face_inputs(processors["llama"], sample, prompt)
    ids = writer.ids(prompt)
    tokens = [llama.tiler.token_count(40, 50), llama.tiler.token_count(9, 9)]
    assert writer.expand(ids, tokens) == inputs["input_ids"][0].tolist()


def test_a_beginning_of_sequence_token_is_written_once(llama: Replica, processors: dict[str, Any]) -> None:
    """Neither doubled where the template writes it, nor lost where the tokenizer would add it."""
    processor = processors["llama"]
    tokenizer = type(processor.tokenizer).from_pretrained(processor.tokenizer.name_or_path)
    tokenizer.backend_tokenizer.post_processor = bos_processor(tokenizer.bos_token_id)
    holder = type("Holder", (), {"tokenizer": tokenizer, "image_token": "<image>"})()
    writer = PromptWriter(holder, llama.image_token_id, None)
    assert writer.ids("what is it").count(tokenizer.bos_token_id) == 1
    assert writer.ids("<s> what is it").count(tokenizer.bos_token_id) == 1


def bos_processor(bos: int) -> Any:
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])


def test_tokenizing_in_many_threads_gives_the_same_ids(llama: Replica) -> None:
    prompts = [words(1 + seed % 50, seed) for seed in range(200)]
    alone = [llama.writer.ids(prompt) for prompt in prompts]
    ids: Callable[[str], list[int]] = llama.writer.ids
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ids, prompts)) == alone


def test_answers_are_written_without_special_tokens(llama: Replica) -> None:
    tokens = llama.writer.ids("red circle")
    assert llama.writer.decode([*tokens, 2]) == "red circle"


@pytest.fixture
def writer(llama: Replica) -> PromptWriter:
    """The tiny model's, with its chat template."""
    return llama.writer


def test_a_conversation_begins_with_its_stored_prompt_and_goes_on_as_the_template_writes_it(
    writer: PromptWriter,
) -> None:
    turns = [Turn("user", "what is it ?"), Turn("assistant", "red"), Turn("user", "how many")]
    whole = writer.text(turns, 2)
    prompt = writer.text(turns[:1], 2)
    assert writer.continued(prompt, turns[1:]) == whole
    assert writer.continued(writer.up_to_images(prompt), turns) == whole
    closed = writer.continued(prompt, turns[1:2], then_answer=False)
    assert closed.startswith(prompt)
    assert whole.startswith(closed.rstrip())
    assert not closed.rstrip().endswith("ASSISTANT:")


def test_tokens_that_a_text_has_in_another_way_are_taken_back_but_none_of_the_prompts(writer: PromptWriter) -> None:
    held = writer.ids("USER: what is it ? ASSISTANT: red blue")
    prompt = "USER: what is it ? ASSISTANT:"
    fixed = len(writer.ids(prompt))
    assert writer.new_ids(held, "USER: what is it ? ASSISTANT: red green", prompt) == (fixed + 1, writer.ids("green"))
    assert writer.new_ids(held, "USER: what is it ? ASSISTANT: red blue", prompt) == (fixed + 1, writer.ids("blue"))
    for other in ("USER: how many ? ASSISTANT: red", "USER: what is it ?", "USER: what is it ? ASSISTANT:"):
        with pytest.raises(PromptError, match="not the first of"):
            writer.new_ids(held, other, prompt)


def test_behind_a_plain_template_there_is_room_for_one_answer(llama: Replica) -> None:
    plain = PromptWriter(llama.writer._processor, llama.image_token_id, "USER: {prompt} ASSISTANT:")
    prompt = plain.text([Turn("user", "what is it ?")], 1)
    answer = [Turn("assistant", "red")]
    assert plain.continued(prompt, answer, then_answer=False) == f"{prompt} red"
    question = Turn("user", "what is it ?")
    assert plain.continued(plain.up_to_images(prompt), [question]) == prompt
    assert plain.continued(plain.up_to_images(prompt), [question, *answer], then_answer=False) == f"{prompt} red"
    with pytest.raises(PromptError, match="single turn"):
        plain.continued(prompt, [*answer, question])


def test_a_template_that_places_the_image_is_left_as_it_is(llama: Replica, processors: dict[str, Any]) -> None:
    """All images of the sample go where it says, wherever the sample's text has its markers."""
    writer = PromptWriter(processors["llama"], llama.image_token_id, "look: <image>\nUSER: {prompt} ASSISTANT:")
    asked = "look: <image><image>\nUSER: what is it ? ASSISTANT:"
    assert writer.text([Turn("user", "what is it ?")], 2) == asked
    assert writer.text([Turn("user", "<image>\n<image>\nwhat is it ?")], 2) == asked
    assert writer.continued(writer.up_to_images(asked), [Turn("user", "what is it ?")]) == asked


@pytest.mark.parametrize(
    "turns",
    [
        [Turn("user", "what ?"), Turn("assistant", "red"), Turn("user", "how many ?")],
        [Turn("system", "answer briefly"), Turn("user", "what ?")],
        [Turn("assistant", "red")],
    ],
)
def test_a_plain_template_refuses_turns_that_it_has_no_place_for(
    turns: list[Turn], llama: Replica, processors: dict[str, Any]
) -> None:
    writer = PromptWriter(processors["llama"], llama.image_token_id, "USER: {prompt} ASSISTANT:")
    with pytest.raises(PromptError, match="single user turn, and this sample has the turns"):
        writer.text(turns, 1)


@pytest.fixture
def written_by(standins: dict[str, Path], tmp_path: Path) -> Callable[[str, str], PromptWriter]:
    """A stand-in's prompts with another chat template."""

    def make(name: str, template: str) -> PromptWriter:
        folder = Path(shutil.copytree(standins[name], tmp_path / name))
        change_json(folder / "chat_template.json", chat_template=template)
        processor, _ = load_processor(folder)
        return PromptWriter(processor, processor.image_token_id, None)

    return make


TURNS = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endfor %}"
)
HEADS = {
    "two_newlines_for_one": ("llama3", LLAMA3, "assistant<|end_header_id|>\n", "\nYes"),
    "space_before_a_word": ("vicuna", VICUNA.replace("'ASSISTANT:'", "'ASSISTANT: '"), "ASSISTANT: ", "Yes"),
    "spaces_that_no_turn_has": ("vicuna", VICUNA.replace("'ASSISTANT:'", "'ASSISTANT:\n\n'"), "ASSISTANT:\n\n", "Yes"),
    "nothing_between": ("vicuna", TURNS + "{% if add_generation_prompt %}assistant: {% endif %}", "assistant: ", "Yes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_a_prompts_tokens_stay_where_the_tokenizer_would_merge_its_end_with_the_answer(
    kind: str, written_by: Callable[[str, str], PromptWriter]
) -> None:
    name, template, end, begins = HEADS[kind]
    writer = written_by(name, template)
    prompt = writer.text([Turn("user", "What is in this picture?")], 1)
    assert prompt.endswith(end)
    whole = writer.continued(prompt, [Turn("assistant", "Yes")], then_answer=False)
    assert whole.startswith(prompt + begins)
    held = writer.ids(prompt)
    stay, answer = writer.new_ids(held, whole, prompt)
    assert stay == len(held)
    assert writer.decode(answer).startswith("Yes")


def test_only_the_tokens_behind_the_stored_prompt_are_cut_apart(
    written_by: Callable[[str, str], PromptWriter],
) -> None:
    """A text whose tokens begin with the prompt's keeps the tokens that it has as a whole."""
    writer = written_by("34b", CHATML)
    prompt = writer.text([Turn("user", "What is in this picture?")], 1)
    whole = writer.continued(prompt, [Turn("assistant", "Yes"), Turn("user", "How many?")])
    ids, fixed = writer.ids_behind(prompt, whole)
    assert (ids, fixed) == (writer.ids(whole), len(writer.ids(prompt)))


SYSTEM = [Turn("system", "Answer the question briefly."), Turn("user", "<image>\nHow many?")]


@pytest.mark.parametrize("name", STANDINS)
def test_a_system_turn_is_written_by_each_of_the_templates(
    name: str, standins: dict[str, Path], written_by: Callable[[str, str], PromptWriter]
) -> None:
    writer = written_by(name, STANDINS[name].template)
    text = writer.text(SYSTEM, 1)
    assert text.index("Answer the question briefly.") < text.index("<image>") < text.index("How many?")


@pytest.mark.parametrize(
    ("template", "turns", "words"),
    [
        (MISTRAL, [Turn("tool", "x"), Turn("user", "How many?")], "only user and assistant turns"),  # type: ignore[arg-type]
        ("{{ messages[0]['content'][5]['text'] }}", SYSTEM[1:], "cannot write these turns"),
        ("{{ 1 / 0 }}", SYSTEM[1:], "ZeroDivisionError"),
        ("{% for m in messages if m['role'] != 'system' %}<image>{% endfor %}", SYSTEM, "leaves out the system turn"),
        (VICUNA, [Turn("assistant", "Yes")], "no user turn"),
    ],
)
def test_what_a_template_cannot_write_is_the_samples_own_fault(
    template: str, turns: list[Turn], words: str, written_by: Callable[[str, str], PromptWriter], llama: Replica
) -> None:
    """The sample goes to quarantine with the template's own words; the others go on."""
    writer = written_by("vicuna", template)
    preparer = SamplePreparer(llama.tiler, writer, writer._image_token_id, 2048, 10**8)
    outcome = preparer.prepare(Sample("key", 3, (png(picture(40, 50)),), tuple(turns)))
    assert isinstance(outcome, BadSample)
    assert (outcome.key, outcome.index, outcome.reason) == ("key", 3, Reason.TEMPLATE_FAILED)
    assert words in outcome.detail
    assert len(outcome.detail) < 500
