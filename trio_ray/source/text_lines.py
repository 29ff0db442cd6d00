"""Records of a file of text, and how lines are cut into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAX_RECORD_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One record as it stands in the file.

    `offset` is where it starts, `data` at most MAX_RECORD_BYTES + 1 of its bytes, `name` that of the field it was in,
    where the file is an object of records.
    """

    offset: int
    data: bytes
    name: str | None = None


def lines(file: BinaryIO, offset: int = 0) -> Iterator[TextRecord]:
    """The lines from `offset` on.

    Blank ones are no records; a longer line than any record has is cut short.
    """
    file.seek(offset)
    while data := file.readline(MAX_RECORD_BYTES + 1):
        start, offset = offset, offset + len(data)
        if len(data) > MAX_RECORD_BYTES:
            rest = data
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_RECORD_BYTES)
                offset += len(rest)
        if data.strip():
            yield TextRecord(start, data)
