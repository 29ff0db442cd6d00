"""The records of a `.json` file, one at a time: an array of any length is never in memory as a whole.

Python's own JSON scanner finds where each record ends. It runs over the bytes as Latin-1 text, in which every byte is
one character: what structures JSON is ASCII, so places in that text are places in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

from trio_ray.source.rejection import ShardDamaged, bounded
from trio_ray.source.sample import Reason
from trio_ray.source.text_lines import MAX_RECORD_BYTES, TextRecord

EACH_FIELD = "*"
"""The setting `source.records` for a file whose top level is an object with one record in each field."""

_CHUNK = 1 << 20
_SPACE = " \t\r\n"
_SCANNER = json.JSONDecoder(strict=False)


def array_records(file: BinaryIO, records: str | None, offset: int = 0) -> Iterator[TextRecord]:
    """The records of a file.

    Args:
        file: seekable.
        records: None: the top level is an array. A name: it is an object, and this field of it holds the array. `*`: it
            is an object, and each of its fields is a record, named by the field.
        offset: where a record starts, to begin there; 0 for the beginning of the file.

    Raises:
        ShardDamaged: SHARD_TRUNCATED where the file ends early, SHARD_UNREADABLE where it is no such JSON.
    """
    text = _Text(file, offset)
    if offset == 0:
        text.skip_byte_order_mark()
        if records is None:
            text.expect("[")
        else:
            text.expect("{")
            if records != EACH_FIELD:
                _find_field(text, records)
                text.expect("[")
    closing = "}" if records == EACH_FIELD else "]"
    if text.peek() == closing:
        return
    while True:
        start = text.place
        name = None
        if records == EACH_FIELD:
            name = _name(text)
        yield TextRecord(start, text.value(), name)
        if text.peek() == closing:
            return
        text.expect(",")
        if text.peek() == closing:  # a comma behind the last record, as careless writers leave it
            return


def top_level_fields(file: BinaryIO, most: int = 12) -> list[str]:
    """Names of the first fields of a file whose top level is an object, as far as they can be read."""
    names: list[str] = []
    try:
        text = _Text(file, 0)
        text.skip_byte_order_mark()
        text.expect("{")
        while len(names) < most and text.peek() != "}":
            names.append(_name(text))
            _skip_value(text)
            if text.peek() == ",":
                text.expect(",")
    except ShardDamaged:
        pass
    return names


def _find_field(text: _Text, wanted: str) -> None:
    names = []
    while text.peek() != "}":
        name = _name(text)
        if name == wanted:
            return
        names.append(name)
        _skip_value(text)
        if text.peek() == ",":
            text.expect(",")
    raise ShardDamaged(
        Reason.SHARD_UNREADABLE,
        f"the top level has no field {wanted!r}, which source.records names; it has {', '.join(names)}",
    )


def _name(text: _Text) -> str:
    data = text.value()
    text.expect(":")
    try:
        name = json.loads(data)
    except ValueError:
        name = None
    if not isinstance(name, str):
        raise ShardDamaged(Reason.SHARD_UNREADABLE, f"the name of a field is {bounded(repr(data))}, not text")
    return name


def _skip_value(text: _Text) -> None:
    """Pass over a value; an array element by element, for it may be long."""
    if text.peek() != "[":
        text.value()
        return
    text.expect("[")
    while text.peek() != "]":
        _skip_value(text)
        if text.peek() == ",":
            text.expect(",")
    text.expect("]")


class _Text:
    """A window on the file that grows until it holds the whole of the next value."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        file.seek(offset)
        self._file = file
        self._text = ""
        self._at = 0
        self._before = offset
        self._ended = False

    @property
    def place(self) -> int:
        """Byte of the file at which the next character is."""
        return self._before + self._at

    def skip_byte_order_mark(self) -> None:
        self._more()
        if self._text.startswith("\xef\xbb\xbf"):
            self._at = 3

    def peek(self) -> str:
        """The next character that is not blank; stops in front of it."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise ShardDamaged(Reason.SHARD_TRUNCATED, f"the JSON ends early, at byte {self.place}")

    def expect(self, sign: str) -> None:
        found = self.peek()
        if found != sign:
            raise ShardDamaged(Reason.SHARD_UNREADABLE, f"{found!r} at byte {self.place}, where {sign!r} belongs")
        self._at += 1

    def value(self) -> bytes:
        """The bytes of the next value."""
        self.peek()
        while True:
            try:
                _, end = _SCANNER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                fault, end = f"no JSON at byte {self.place}: {error}", -1
            # A number may go on behind the window.
            if 0 <= end < len(self._text) or (end == len(self._text) and not self._more()):
                data = self._text[self._at : end].encode("latin-1")
                self._at = end
                return data
            if len(self._text) - self._at > MAX_RECORD_BYTES:
                raise ShardDamaged(
                    Reason.SHARD_UNREADABLE, f"no record of at most {MAX_RECORD_BYTES} bytes at byte {self.place}"
                )
            if end < 0 and not self._more(at_least=len(self._text) - self._at):
                raise ShardDamaged(Reason.SHARD_TRUNCATED if self._cut() else Reason.SHARD_UNREADABLE, fault)

    def _cut(self) -> bool:
        """Whether what is left could be the beginning of a value: its last error is at the end."""
        try:
            _SCANNER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            return error.pos >= len(self._text.rstrip(_SPACE)) - 8 or error.msg.startswith("Unterminated")
        except (ValueError, RecursionError):
            return False
        return True

    def _more(self, at_least: int = _CHUNK) -> bool:
        """Read on; False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(max(_CHUNK, at_least))
        if not data:
            self._ended = True
            return False
        self._text = self._text[self._at :] + data.decode("latin-1")
        self._before += self._at
        self._at = 0
        return True
