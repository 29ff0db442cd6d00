"""From a field that holds a conversation to its turns, in all the forms that data sets use.

Known are LLaVA's `{from, value}`, the chat form `{role, content}` (also with OpenAI's content parts), pairs such as
the_cauldron's `{user, assistant}`, any of these as JSON text, and a struct of lists, as Hugging Face's `Sequence` is
stored in Parquet.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trio_ray.source.rejection import Rejected, listed, shown
from trio_ray.source.sample import Reason, Turn

IMAGE_MARKER = "<image>"

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
_ASKING = ("user", "human", "question", "instruction", "prompt")
_ANSWERING = ("assistant", "gpt", "answer", "response", "output")
_LOOKS_LIKE_TURNS = re.compile(r"\s*\[\s*\{\s*['\"](from|value|role|content|user|assistant|human|gpt)['\"]\s*:")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_IMAGE_FIELDS = ("image_url", "image", "bytes", "url", "path", "data", "source")


@dataclass(frozen=True, slots=True)
class Message:
    """A turn, and the images that its content carries itself (cells for `image_files.read_images`)."""

    turn: Turn
    images: tuple[object, ...] = ()


def looks_like_turns(value: object) -> bool:
    """Whether a field holds turns and not the text of a prompt."""
    if isinstance(value, str):
        return _LOOKS_LIKE_TURNS.match(value) is not None
    return isinstance(value, list | dict)


def messages_of(value: object, name: str) -> list[Message]:
    """The turns in the field `name`.

    Raises:
        Rejected: TEXT_MALFORMED, where they cannot be understood: turns are never taken for the text of a prompt.
        TEXT_NOT_UTF8, where a text cannot be stored.
    """
    if isinstance(value, bytes):
        value = text_of(value, name)
    if isinstance(value, str):
        value = _parsed(value, name)
    if isinstance(value, dict):
        value = _rows_of_columns(value, name)
    if not isinstance(value, list):
        raise Rejected(Reason.TEXT_MALFORMED, f"{name} holds {shown(value)} where a list of turns belongs")
    return [message for entry in value for message in _messages(entry, name)]


def text_of(value: object, name: str) -> str:
    """A text of a record, without a byte order mark.

    Raises:
        Rejected: TEXT_MALFORMED or TEXT_NOT_UTF8.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Rejected(Reason.TEXT_NOT_UTF8, f"{name}: {error}; store the text as UTF-8") from None
    if not isinstance(value, str):
        raise Rejected(Reason.TEXT_MALFORMED, f"{name} holds {shown(value)}, not text")
    try:
        value.encode("utf-8")  # JSON can spell half of a surrogate pair, which no table can store
    except UnicodeEncodeError as error:
        raise Rejected(Reason.TEXT_NOT_UTF8, f"{name}: {error.reason} at character {error.start}") from None
    return value.removeprefix("\ufeff")


def _parsed(text: str, name: str) -> object:
    """Turns that were written as text: JSON, or what Python prints."""
    text = text.strip().removeprefix("\ufeff")
    for parse in (json.loads, ast.literal_eval):
        try:
            value: object = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list | dict):
            return value
    raise Rejected(
        Reason.TEXT_MALFORMED,
        f"{name} holds text, {shown(text)}, that is no JSON list of turns; if it is the prompt, name its field in "
        "source.text_column under another name than a conversation's",
    )


def _rows_of_columns(columns: Mapping[object, object], name: str) -> list[object]:
    """One struct of equally long lists as a list of structs."""
    lists = {str(key): values for key, values in columns.items() if isinstance(values, list)}
    if len(lists) != len(columns) or len({len(values) for values in lists.values()}) != 1:
        raise Rejected(Reason.TEXT_MALFORMED, f"{name} is a struct of {listed(columns)} where a list of turns belongs")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _messages(entry: object, name: str) -> Iterator[Message]:
    """One turn, or the two of a pair."""
    if not isinstance(entry, dict):
        raise Rejected(Reason.TEXT_MALFORMED, f"{name} holds {shown(entry)} where a turn belongs")
    if entry.get("from") is not None or entry.get("role") is not None:
        yield _message(entry, name)
        return
    asked, answered = _first(entry, _ASKING), _first(entry, _ANSWERING)
    if asked is None:
        raise Rejected(
            Reason.TEXT_MALFORMED,
            f"{name} has a turn with the fields {listed(entry)}; known are from and value, role and content, "
            f"user and assistant",
        )
    yield Message(Turn("user", text_of(entry[asked], name)))
    if answered is not None:
        yield Message(Turn("assistant", text_of(entry[answered], name)))


def _first(entry: Mapping[str, object], names: Sequence[str]) -> str | None:
    return next((name for name in names if entry.get(name) is not None), None)


def _message(entry: Mapping[str, object], name: str) -> Message:
    """A turn from LLaVA's `{from, value}` or the chat form `{role, content}`."""
    named = entry.get("from") if entry.get("from") is not None else entry.get("role")
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise Rejected(Reason.TEXT_MALFORMED, f"{name} has a turn by {shown(named)}; known are {', '.join(_ROLES)}")
    field = next((field for field in ("value", "content", "text") if entry.get(field) is not None), None)
    if field is None:
        raise Rejected(
            Reason.TEXT_MALFORMED, f"{name} has a turn without value or content; its fields are {listed(entry)}"
        )
    content = entry[field]
    if not isinstance(content, list):
        return Message(Turn(role, text_of(content, name)))
    texts, images = [], []
    for part in content:
        text, image = _part(part, name)
        texts.append(text)
        images += [] if image is None else [image]
    return Message(Turn(role, "\n".join(texts)), tuple(images))


def _part(part: object, name: str) -> tuple[str, object | None]:
    """A piece of a message's content: its text or the marker, and the image that it carries, if any."""
    if isinstance(part, str):
        return text_of(part, name), None
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and (kind in _TEXT_PARTS or (kind is None and part.get("text") is not None)):
        return text_of(part.get("text"), name), None
    if isinstance(part, dict) and (kind in _IMAGE_PARTS or (kind is None and _first(part, _IMAGE_FIELDS))):
        field = _first(part, _IMAGE_FIELDS)
        return IMAGE_MARKER, None if field is None else part[field]
    raise Rejected(
        Reason.TEXT_MALFORMED, f"{name} has content of type {shown(kind)}; known are text, image and image_url"
    )
