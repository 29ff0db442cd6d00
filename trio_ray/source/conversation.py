"""From a record's fields to the turns of a prompt and its true answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trio_ray.config import SourceConfig
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Reason, Turn

IMAGE_MARKER = "<image>"
CONVERSATION_FIELDS = ("conversations", "messages")
TEXT_FIELDS = ("question", "prompt", "text", "caption")
# VQA's `multiple_choice_answer` is its annotators' agreed answer, so it goes before their single `answers`.
ANSWER_FIELDS = ("multiple_choice_answer", "answer", "answers", "label")

Role = Literal["user", "assistant"]
_ROLES: dict[object, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """The turns of one prompt, the last of them the user's to be answered, and the true answer if known."""

    turns: tuple[Turn, ...]
    answer: str | None


def exchanges(record: Mapping[str, object], config: SourceConfig) -> list[tuple[str, Exchange | Rejected]]:
    """What a record asks, as (key suffix, exchange) pairs; a fault stands in the place of what it spoils.

    One pair, with an empty suffix, unless `config.turns` is 'each' and the record is a conversation: then one
    for each user turn, suffix `#0`, `#1`, ..., with the turns before it as context.
    """
    try:
        name = _prompt_field(record, config)
        if name is None:
            wanted = config.text_column or ", ".join(CONVERSATION_FIELDS + TEXT_FIELDS)
            raise Rejected(Reason.TEXT_MISSING, f"the record has none of: {wanted}")
        value = record[name]
        if not isinstance(value, list):
            text = _text(value, name)
            return [("", _exchange((Turn("user", text),), _answer(record, config)))]
        return _conversation([_turn(message, name) for message in value], record, config)
    except Rejected as fault:
        return [("", fault)]


def has_prompt(record: Mapping[str, object], config: SourceConfig) -> bool:
    """Whether the record has a field for the prompt with anything in it."""
    name = _prompt_field(record, config)
    value = None if name is None else record[name]
    return bool(value.strip() if isinstance(value, str | bytes) else value)


def text_fields(config: SourceConfig) -> tuple[str, ...]:
    """The fields that may hold the prompt, in the order they are looked for."""
    return CONVERSATION_FIELDS + TEXT_FIELDS if config.text_column is None else (config.text_column,)


def answer_fields(config: SourceConfig) -> tuple[str, ...]:
    """The fields that may hold the true answer, in the order they are looked for."""
    return ANSWER_FIELDS if config.answer_column is None else (config.answer_column,)


def _prompt_field(record: Mapping[str, object], config: SourceConfig) -> str | None:
    return next((name for name in text_fields(config) if record.get(name) is not None), None)


def _conversation(
    turns: Sequence[Turn], record: Mapping[str, object], config: SourceConfig
) -> list[tuple[str, Exchange | Rejected]]:
    """Cut a conversation at its user turns."""
    questions = [position for position, turn in enumerate(turns) if turn.role == "user"]
    if not questions:
        raise Rejected(Reason.TEXT_EMPTY, "the conversation has no user turn")
    turns = turns[questions[0] :]  # LLaVA's own data has conversations that start with a stray answer
    roles: tuple[Role, Role] = ("user", "assistant")
    if any(turn.role != roles[position % 2] for position, turn in enumerate(turns)):
        raise Rejected(Reason.TEXT_MALFORMED, "user and assistant turns do not alternate")
    found: list[tuple[str, Exchange | Rejected]] = []
    for end in range(1, len(turns) + 1, 2):
        answer = turns[end].text if end < len(turns) else None
        if len(questions) == 1 and answer is None:
            answer = _answer(record, config)
        try:
            exchange: Exchange | Rejected = _exchange(tuple(turns[:end]), answer)
        except Rejected as fault:
            exchange = fault
        if config.turns == "first":
            return [("", exchange)]
        found.append((f"#{end // 2}", exchange))
    return found


def _exchange(turns: tuple[Turn, ...], answer: str | None) -> Exchange:
    for turn in turns:
        if not turn.text.replace(IMAGE_MARKER, "").strip():
            raise Rejected(Reason.TEXT_EMPTY, f"a {turn.role} turn of the prompt is empty")
    return Exchange(turns, answer if answer and answer.strip() else None)


def _turn(message: object, name: str) -> Turn:
    """A turn from LLaVA's `{from, value}` or the chat form `{role, content}`."""
    if not isinstance(message, dict):
        raise Rejected(Reason.TEXT_MALFORMED, f"{name} holds {type(message).__name__} where a turn belongs")
    role_field, text_field = ("from", "value") if message.get("from") is not None else ("role", "content")
    role = _ROLES.get(message.get(role_field)) if isinstance(message.get(role_field), str) else None
    if role is None:
        raise Rejected(
            Reason.TEXT_MALFORMED,
            f"{name} has a turn by {message.get(role_field)!r}; known are {', '.join(map(str, _ROLES))}",
        )
    content = message.get(text_field)
    if isinstance(content, list):
        return Turn(role, "\n".join(_part(part, name) for part in content))
    return Turn(role, _text(content, name))


def _part(part: object, name: str) -> str:
    """A piece of a chat message whose content is a list."""
    if isinstance(part, dict) and part.get("type") == "image":
        return IMAGE_MARKER
    if isinstance(part, dict) and part.get("type") == "text":
        return _text(part.get("text"), name)
    raise Rejected(Reason.TEXT_MALFORMED, f"{name} has content that is neither text nor image")


def _text(value: object, name: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Rejected(Reason.TEXT_NOT_UTF8, f"{name}: {error}") from None
    if not isinstance(value, str):
        raise Rejected(Reason.TEXT_MALFORMED, f"{name} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")  # JSON can spell half of a surrogate pair, which no table can store
    except UnicodeEncodeError as error:
        raise Rejected(Reason.TEXT_NOT_UTF8, f"{name}: {error}") from None
    return value


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
        return _text(value, "answer").strip() or None
    except Rejected:
        return None
