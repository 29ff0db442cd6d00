"""From a record's fields to turns and answers."""

from __future__ import annotations

import json

import pytest

from trio_ray.config import SourceConfig
from trio_ray.source.conversation import Exchange, exchanges
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Reason, Turn

FIRST = SourceConfig()
EACH = SourceConfig(turns="each")


def talk(*texts: str, names: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    """LLaVA's form of a conversation."""
    return [{"from": names[number % 2], "value": text} for number, text in enumerate(texts)]


def only(record: dict[str, object], config: SourceConfig = FIRST) -> Exchange:
    ((suffix, exchange),) = exchanges(record, config)
    assert suffix == ""
    assert isinstance(exchange, Exchange), exchange
    return exchange


def reason(record: dict[str, object], config: SourceConfig = FIRST) -> Reason:
    ((suffix, fault),) = exchanges(record, config)
    assert suffix == ""
    assert isinstance(fault, Rejected), fault
    return fault.reason


@pytest.mark.parametrize("field", ["question", "prompt", "text", "caption"])
def test_a_plain_question_is_one_user_turn(field: str) -> None:
    assert only({field: "<image>\nWhat?"}) == Exchange((Turn("user", "<image>\nWhat?"),), None, markers=1)


def test_the_first_field_present_is_the_prompt() -> None:
    assert only({"caption": "c", "question": None, "prompt": "p"}).turns[0].text == "p"


def test_the_settings_choose_prompt_and_answer() -> None:
    record = {"question": "q", "answer": "a", "alt": "mine", "truth": "yes"}
    assert only(record, SourceConfig(text_column="alt", answer_column="truth")) == Exchange(
        (Turn("user", "mine"),), "yes"
    )
    assert reason({"question": "q"}, SourceConfig(text_column="alt")) == Reason.TEXT_MISSING


def test_of_a_conversation_the_first_question_is_taken_with_its_answer() -> None:
    record = {"id": "1", "conversations": talk("<image>\nq0", "a0", "q1", "a1")}
    assert only(record) == Exchange((Turn("user", "<image>\nq0"),), "a0", markers=1)


def test_each_question_is_a_sample_with_the_turns_before_it() -> None:
    pairs = exchanges({"conversations": talk("<image>\nq0", "a0", "q1", "a1", "q2")}, EACH)
    assert [suffix for suffix, _ in pairs] == ["#0", "#1", "#2"]
    last = pairs[2][1]
    assert isinstance(last, Exchange)
    assert last.turns == (
        Turn("user", "<image>\nq0"),
        Turn("assistant", "a0"),
        Turn("user", "q1"),
        Turn("assistant", "a1"),
        Turn("user", "q2"),
    )
    assert [pair[1].answer for pair in pairs if isinstance(pair[1], Exchange)] == ["a0", "a1", None]


def test_an_empty_question_spoils_itself_and_what_builds_on_it_but_not_what_came_before() -> None:
    pairs = exchanges({"conversations": talk("q0", "a0", " ", "a1", "q2", "a2")}, EACH)
    assert [getattr(outcome, "reason", None) for _, outcome in pairs] == [
        None,
        Reason.TEXT_EMPTY,
        Reason.TEXT_EMPTY,
    ]


def test_chat_messages_with_parts_are_a_conversation_too() -> None:
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat"}]}
    assert only(record) == Exchange((Turn("user", "<image>\nWhat?"),), "A cat", markers=1)


TURNS = (Turn("user", "<image>\nq0"), Turn("assistant", "a0"), Turn("user", "q1"))
LLAVA = talk("<image>\nq0", "a0", "q1", "a1")


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": LLAVA},
        {"conversations": json.dumps(LLAVA)},
        {"conversations": json.dumps(LLAVA).encode()},
        {"conversations": str(LLAVA)},
        {"text": json.dumps(LLAVA)},
        {"conversations": {"from": ["human", "gpt"] * 2, "value": ["<image>\nq0", "a0", "q1", "a1"]}},
        {"conversations": [{"from": "gpt", "value": "stray"}, *LLAVA]},
        {"texts": [{"user": "<image>\nq0", "assistant": "a0"}, {"user": "q1", "assistant": "a1", "source": "x"}]},
        {"texts": json.dumps([{"question": "<image>\nq0", "answer": "a0"}, {"question": "q1", "answer": "a1"}])},
    ],
)
def test_every_form_of_a_conversation_gives_the_same_turns(record: dict[str, object]) -> None:
    """Above all, a conversation that was stored as text is never the prompt itself, answers included."""
    _, (suffix, last) = exchanges(record, EACH)
    assert (suffix, last) == ("#1", Exchange(TURNS, "a1", markers=1))


def test_a_system_turn_stays_in_front_of_every_prompt() -> None:
    record = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q0"}]}
    assert only(record).turns == (Turn("system", "be brief"), Turn("user", "q0"))
    assert only({"conversations": [{"from": "system", "value": " "}, *talk("q")]}).turns == (Turn("user", "q"),)


def test_content_parts_may_carry_their_images() -> None:
    """As OpenAI's chat form has them: by address, as a data URI, or in a field of their own."""
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_image", "image_url": "1.jpg"},
        {"type": "image", "image": b"bytes"},
        "b",
    ]
    found = only({"messages": [{"role": "user", "content": content}]})
    assert found.images == ({"url": "data:image/png;base64,AA=="}, "1.jpg", b"bytes")
    assert found.turns[0].text == "a\n<image>\n<image>\n<image>\nb"


def test_a_byte_order_mark_is_no_part_of_a_prompt() -> None:
    assert only({"text": "\ufeffWhat?"}).turns[0].text == "What?"
    assert only({"text": b"\xef\xbb\xbfWhat?"}).turns[0].text == "What?"


@pytest.mark.parametrize("record", [{}, {"caption": ""}, {"caption": None}, {"text": " "}, {"conversations": []}])
def test_where_no_text_is_needed_an_image_alone_is_a_sample(record: dict[str, object]) -> None:
    """`cache.scope: image` stores images, and questions come later."""
    found = only({**record, "label": 3}, SourceConfig(text_required=False))
    assert (found.turns[0].text.strip(), found.answer) == ("", "3")


def test_text_that_is_there_must_be_sound_even_where_none_is_needed() -> None:
    assert reason({"caption": b"caf\xe9"}, SourceConfig(text_required=False)) == Reason.TEXT_NOT_UTF8


CHOICE = "{hint}\n{question}\n{options}\nAnswer with the option's letter."


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"question": "q", "options": ["x", "y"]}, "q\nA. x\nB. y\nAnswer with the option's letter."),
        ({"question": "q", "choices": ["x", "y"]}, "q\nA. x\nB. y\nAnswer with the option's letter."),
        ({"question": "q", "options": "['x', 'y']"}, "q\nA. x\nB. y\nAnswer with the option's letter."),
        (
            {"question": "q", "hint": "h", "A": "x", "B": "y", "C": "nan"},
            "h\nq\nA. x\nB. y\nAnswer with the option's letter.",
        ),
        ({"question": "q", "choice_a": "x", "choice_b": "y"}, "q\nA. x\nB. y\nAnswer with the option's letter."),
        ({"question": "q", "hint": float("nan"), "options": []}, "q\nAnswer with the option's letter."),
    ],
)
def test_a_template_writes_the_options_into_the_prompt(record: dict[str, object], text: str) -> None:
    assert only(record, SourceConfig(text_template=CHOICE)).turns == (Turn("user", text),)


def test_a_template_of_which_nothing_is_there_is_a_missing_text() -> None:
    assert reason({"ask": "q"}, SourceConfig(text_template=CHOICE)) == Reason.TEXT_MISSING


def test_the_settings_say_where_options_are() -> None:
    for columns, fields in ((["list"], {"list": ["x", "y"]}), (["one", "two"], {"one": "x", "two": "y"})):
        config = SourceConfig(text_template="{options}", option_columns=columns)
        assert only({**fields, "options": ["no"]}, config).turns[0].text == "A. x\nB. y"


def test_answers_before_the_first_question_are_dropped() -> None:
    assert only({"conversations": talk("stray", "q", "a", names=("gpt", "human"))}) == Exchange(
        (Turn("user", "q"),), "a"
    )


def test_a_conversation_without_a_reply_takes_the_records_answer() -> None:
    assert only({"conversations": talk("q"), "answer": "yes"}).answer == "yes"


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"answer": "yes"}, "yes"),
        ({"answer": " yes\n"}, "yes"),
        ({"answer": 3}, "3"),
        ({"label": 0}, "0"),
        ({"answers": ["no", "yes", "yes"]}, "yes"),
        ({"answers": ["tie", "other"]}, "tie"),
        (
            {
                "answers": [
                    {"answer": "no", "answer_id": 1},
                    {"answer": "no", "answer_id": 2},
                    {"answer": "x"},
                ]
            },
            "no",
        ),
        ({"answers": [{"answer": "a"}, {"answer": "a"}], "multiple_choice_answer": "agreed"}, "agreed"),
        ({"answer": "", "label": "cat"}, "cat"),
        ({"answer": float("nan")}, None),
        ({"answer": None}, None),
        ({"answers": []}, None),
        ({"answer": b"caf\xe9"}, None),
        ({"answer": "\ud83d"}, None),
        ({"answer": {"text": "x"}}, None),
    ],
)
def test_answers_of_every_kind(fields: dict[str, object], answer: str | None) -> None:
    assert only({"question": "q", **fields}).answer == answer


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({}, Reason.TEXT_MISSING),
        ({"question": None, "url": "x"}, Reason.TEXT_MISSING),
        ({"question": ""}, Reason.TEXT_EMPTY),
        ({"question": " \n"}, Reason.TEXT_EMPTY),
        ({"question": "<image>\n"}, Reason.TEXT_EMPTY),
        ({"conversations": []}, Reason.TEXT_EMPTY),
        ({"conversations": talk("only an answer", names=("gpt", "human"))}, Reason.TEXT_EMPTY),
        ({"conversations": talk("", "a")}, Reason.TEXT_EMPTY),
        ({"question": b"caf\xe9"}, Reason.TEXT_NOT_UTF8),
        ({"question": "half \ud83d a pair"}, Reason.TEXT_NOT_UTF8),
        ({"conversations": talk("\udc00", "a")}, Reason.TEXT_NOT_UTF8),
        ({"question": 7}, Reason.TEXT_MALFORMED),
        ({"question": {"text": "x"}}, Reason.TEXT_MALFORMED),
        ({"conversations": ["hello"]}, Reason.TEXT_MALFORMED),
        ({"conversations": talk("q", "a", names=("human", "human"))}, Reason.TEXT_MALFORMED),
        ({"conversations": [*talk("q", "a"), {"from": "system", "value": "be brief"}]}, Reason.TEXT_MALFORMED),
        ({"conversations": "hello"}, Reason.TEXT_MALFORMED),
        ({"conversations": "[{'from': 'human', 'value': 'q'}\n {'from': 'gpt', 'value': 'a'}]"}, Reason.TEXT_MALFORMED),
        ({"text": '[{"from": "human", "value": "q"'}, Reason.TEXT_MALFORMED),
        ({"messages": {"role": ["user"], "content": ["q", "a"]}}, Reason.TEXT_MALFORMED),
        ({"texts": [{"answer": "a"}]}, Reason.TEXT_MALFORMED),
        ({"conversations": [{"from": ["human"], "value": "q"}]}, Reason.TEXT_MALFORMED),
        ({"conversations": [{"from": "human"}]}, Reason.TEXT_MALFORMED),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, Reason.TEXT_MALFORMED),
    ],
)
def test_what_is_wrong_with_a_text_is_named(record: dict[str, object], wanted: Reason) -> None:
    assert reason(record) == wanted
    assert reason(record, EACH) == wanted if "conversations" not in record or wanted != Reason.TEXT_EMPTY else True
