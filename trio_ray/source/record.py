"""A row of a corpus, in the one form that all three formats hand to the reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Reason

KEY_FIELDS = ("key", "question_id", "id")


@dataclass(frozen=True, slots=True)
class Row:
    """One row before it becomes samples (several where each turn of its conversation is one).

    `record` holds the fields that the text comes from, or why there are none. `images` reads the encoded
    images; it may be called only before the next row is asked for, and is not called for a row whose samples
    are all skipped. It raises `Rejected` for a fault of this row, `ShardDamaged` where the shard ends,
    `StoreError` if the store fails.
    """

    key: str
    record: Mapping[str, object] | Rejected
    images: Callable[[], tuple[bytes, ...]]


def parse_object(data: bytes) -> dict[str, object]:
    """The JSON object in UTF-8 `data`.

    Raises:
        Rejected: TEXT_EMPTY, TEXT_NOT_UTF8, or TEXT_MALFORMED (not JSON, or not an object).
    """
    if not data.strip():
        raise Rejected(Reason.TEXT_EMPTY, "the JSON text is empty")
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Rejected(Reason.TEXT_NOT_UTF8, f"JSON that is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError also for integers of absurd length
        raise Rejected(Reason.TEXT_MALFORMED, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Rejected(Reason.TEXT_MALFORMED, f"JSON {type(value).__name__} where an object belongs")
    return value


def key_of(record: Mapping[str, object], column: str | None, row: int) -> str:
    """The key of a record: `column` if given, else the first usable of KEY_FIELDS, else the row's number.

    Raises:
        Rejected: TEXT_MALFORMED, when `column` is given and holds neither text nor an integer.
    """
    for name in KEY_FIELDS if column is None else (column,):
        value = record.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas turns integers into floats where a column has gaps
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value:
            return storable(value)
    if column is not None:
        raise Rejected(Reason.TEXT_MALFORMED, f"no usable key in {column!r}, which source.key_column names")
    return str(row)


def storable(text: str) -> str:
    """`text` with lone surrogates escaped, so that every table and file name can hold it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
