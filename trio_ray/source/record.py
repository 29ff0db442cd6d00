"""A row of a corpus, in the one form that all formats hand to the reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trio_ray.config import SourceConfig
from trio_ray.source.rejection import Rejected, listed, shown
from trio_ray.source.sample import Reason

KEY_FIELDS = ("key", "question_id", "id")

_LIKE_A_ROW = re.compile(r"@+\d+")
_ENDINGS = (".tar.gz", ".tgz", ".tar", ".parquet", ".jsonl", ".ndjson", ".json")


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


def parse_record(data: bytes) -> dict[str, object]:
    """The record in UTF-8 JSON: an object, or a bare list of turns, which becomes its field `conversations`.

    Raises:
        Rejected: TEXT_EMPTY, TEXT_NOT_UTF8, or TEXT_MALFORMED (not JSON, or neither of these).
    """
    if not data.strip():
        raise Rejected(Reason.TEXT_EMPTY, "the JSON text is empty")
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Rejected(Reason.TEXT_NOT_UTF8, f"JSON that is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError also for integers of absurd length
        raise Rejected(Reason.TEXT_MALFORMED, f"not JSON: {error}") from None
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return {"conversations": value}
    if not isinstance(value, dict):
        raise Rejected(Reason.TEXT_MALFORMED, f"JSON holds {shown(value)} where an object belongs")
    return value


def key_of(record: Mapping[str, object], config: SourceConfig, uri: str, row: int) -> str:
    """The key of a record.

    `source.key_column` if given, else the first usable of KEY_FIELDS, else `@` and the row's number; with
    `source.keys: row` the file's name, `@` and the row's number. An id that looks like a row's number gets one more
    `@` in front, so that it cannot be taken for one.

    Raises:
        Rejected: TEXT_MALFORMED, when `key_column` is given and holds neither text nor an integer.
    """
    if config.keys == "row":
        return row_key(config, uri, row)
    column = config.key_column
    for name in KEY_FIELDS if column is None else (column,):
        value = record.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas turns integers into floats where a column has gaps
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value:
            return told_from_rows(storable(value))
    if column is not None:
        detail = (
            f"the field {column!r}, which source.key_column names, holds {shown(record.get(column))}; a key is text or "
            f"an integer. The record has: {listed(record)}"
        )
        raise Rejected(Reason.TEXT_MALFORMED, detail)
    return row_key(config, uri, row)


def row_key(config: SourceConfig, uri: str, row: int) -> str:
    """The key that a row has without any id of its own."""
    return f"{_stem(uri)}@{row}" if config.keys == "row" else f"@{row}"


def told_from_rows(key: str) -> str:
    """An id of the data as a key that no row's number can be."""
    return f"@{key}" if _LIKE_A_ROW.fullmatch(key) else key


def storable(text: str) -> str:
    """`text` with lone surrogates escaped, so that every table and file name can hold it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _stem(uri: str) -> str:
    """The file's name without its folder and known ending."""
    name = storable(uri.rpartition("/")[2])
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]
