"""From a record's fields to the turns of a prompt and its true answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trio_ray.config import SourceConfig
from trio_ray.source.options import fill_in, needed_fields
from trio_ray.source.rejection import Rejected, listed
from trio_ray.source.sample import Reason, Turn
from trio_ray.source.turns import IMAGE_MARKER, Message, Role, looks_like_turns, messages_of, text_of

CONVERSATION_FIELDS = ("conversations", "messages", "texts")
TEXT_FIELDS = ("question", "prompt", "text", "caption")
# VQA's `multiple_choice_answer` is its annotators' agreed answer, so it goes before their single `answers`.
ANSWER_FIELDS = ("multiple_choice_answer", "answer", "answers", "label")


@dataclass(frozen=True, slots=True)
class Exchange:
    """The turns of one prompt, the last of them the user's to be answered, and the true answer if known.

    Attributes:
        turns: a system turn first, if there is one.
        answer: what the assistant's next turn says, or the record's own answer.
        images: cells of the images that these turns carry themselves.
        markers: `<image>` markers of the whole conversation, of which these turns may be the beginning.
    """

    turns: tuple[Turn, ...]
    answer: str | None
    images: tuple[object, ...] = ()
    markers: int = 0


def exchanges(record: Mapping[str, object], config: SourceConfig) -> list[tuple[str, Exchange | Rejected]]:
    """What a record asks, as (key suffix, exchange) pairs; a fault stands in the place of what it spoils.

    One pair, with an empty suffix, unless `config.turns` is 'each' and the record is a conversation: then one
    for each user turn, suffix `#0`, `#1`, ..., with the turns before it as context.
    """
    try:
        if config.text_template is not None:
            return [("", _single(fill_in(config.text_template, record, config), record, config))]
        name = _prompt_field(record, config)
        if name is None:
            return [("", _without_text(record, config))]
        value = record[name]
        if name in CONVERSATION_FIELDS or looks_like_turns(value):
            return _conversation(messages_of(value, name), record, config)
        return [("", _single(text_of(value, name), record, config))]
    except Rejected as fault:
        return [("", fault)]


def has_prompt(record: Mapping[str, object], config: SourceConfig) -> bool:
    """Whether the record has a field for the prompt with anything in it."""
    if config.text_template is not None:
        return any(record.get(name) is not None for name in needed_fields(config))
    name = _prompt_field(record, config)
    value = None if name is None else record[name]
    return bool(value.strip() if isinstance(value, str | bytes) else value)


def text_fields(config: SourceConfig) -> tuple[str, ...]:
    """The fields that may hold the prompt, in the order they are looked for."""
    if config.text_template is not None:
        return needed_fields(config)
    return CONVERSATION_FIELDS + TEXT_FIELDS if config.text_column is None else (config.text_column,)


def answer_fields(config: SourceConfig) -> tuple[str, ...]:
    """The fields that may hold the true answer, in the order they are looked for."""
    return ANSWER_FIELDS if config.answer_column is None else (config.answer_column,)


def _prompt_field(record: Mapping[str, object], config: SourceConfig) -> str | None:
    return next((name for name in text_fields(config) if record.get(name) is not None), None)


def _without_text(record: Mapping[str, object], config: SourceConfig) -> Exchange:
    if not config.needs_text:
        return Exchange((Turn("user", ""),), _answer(record, config))
    raise Rejected(
        Reason.TEXT_MISSING,
        f"the record has none of: {', '.join(text_fields(config))}. It has: {listed(record)}. Name the prompt's "
        "field in source.text_column, or set cache.scope: image, which needs no text",
    )


def _single(text: str, record: Mapping[str, object], config: SourceConfig) -> Exchange:
    return _exchange([Message(Turn("user", text))], _answer(record, config), text.count(IMAGE_MARKER), config)


def _conversation(
    messages: Sequence[Message], record: Mapping[str, object], config: SourceConfig
) -> list[tuple[str, Exchange | Rejected]]:
    """Cut a conversation at its user turns."""
    system = [message for message in messages[:1] if message.turn.role == "system"]
    messages = messages[len(system) :]
    system = [message for message in system if message.turn.text.strip()]
    questions = [position for position, message in enumerate(messages) if message.turn.role == "user"]
    if not questions:
        if not messages and not config.needs_text:
            return [("", _without_text(record, config))]
        raise Rejected(Reason.TEXT_EMPTY, "the conversation has no user turn")
    messages = messages[questions[0] :]  # LLaVA's own data has conversations that start with a stray answer
    roles: tuple[Role, Role] = ("user", "assistant")
    if any(message.turn.role != roles[position % 2] for position, message in enumerate(messages)):
        raise Rejected(
            Reason.TEXT_MALFORMED,
            "user and assistant turns do not alternate; a system turn may only be the first",
        )
    markers = sum(message.turn.text.count(IMAGE_MARKER) for message in (*system, *messages))
    found: list[tuple[str, Exchange | Rejected]] = []
    for end in range(1, len(messages) + 1, 2):
        answer = messages[end].turn.text if end < len(messages) else None
        if len(questions) == 1 and answer is None:
            answer = _answer(record, config)
        try:
            exchange: Exchange | Rejected = _exchange([*system, *messages[:end]], answer, markers, config)
        except Rejected as fault:
            exchange = fault
        if config.turns == "first":
            return [("", exchange)]
        found.append((f"#{end // 2}", exchange))
    return found


def _exchange(messages: Sequence[Message], answer: str | None, markers: int, config: SourceConfig) -> Exchange:
    turns = tuple(message.turn for message in messages)
    for turn in turns:
        may_be_empty = len(turns) == 1 and not config.needs_text
        if not may_be_empty and not turn.text.replace(IMAGE_MARKER, "").strip():
            raise Rejected(
                Reason.TEXT_EMPTY,
                f"the prompt has a {turn.role} turn without text; cache.scope: image needs no text",
            )
    images = tuple(image for message in messages for image in message.images)
    return Exchange(turns, answer if answer and answer.strip() else None, images, markers)


def _answer(record: Mapping[str, object], config: SourceConfig) -> str | None:
    """The record's true answer. A corpus without answers is a good corpus, so an unusable one is none."""
    for name in answer_fields(config):
        answer = _answer_text(record.get(name))
        if answer is not None:
            return answer
    return None


def _answer_text(value: object) -> str | None:
    """One answer as text; of several (VQA has ten annotators) the most frequent, the earliest on a tie."""
    if isinstance(value, list):
        texts = [text for text in map(_answer_text, value) if text is not None]
        return Counter(texts).most_common(1)[0][0] if texts else None
    if isinstance(value, dict):
        return _answer_text(value.get("answer"))
    if isinstance(value, int | float):
        return str(value) if value == value else None  # NaN is how pandas writes a gap
    try:
        return text_of(value, "answer").strip() or None
    except Rejected:
        return None
