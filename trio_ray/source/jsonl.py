"""JSONL: one object a line, with the path(s) of its image(s)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from trio_ray.config import SourceConfig
from trio_ray.source.image_files import folder_of, read_images
from trio_ray.source.record import Row, key_of, parse_object
from trio_ray.source.rejection import Rejected, ShardDamaged
from trio_ray.source.sample import Opener, Reason, Shard

MAX_LINE_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank.

    `offset` is where it starts, `data` at most MAX_LINE_BYTES + 1 of its bytes.
    """

    offset: int
    data: bytes


def lines(file: BinaryIO) -> Iterator[Line]:
    """The lines from the file's position on.

    Blank ones are no rows; a longer line than any record has is cut short.
    """
    offset = file.tell()
    while data := file.readline(MAX_LINE_BYTES + 1):
        start, offset = offset, offset + len(data)
        if len(data) > MAX_LINE_BYTES:
            rest = data
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES)
                offset += len(rest)
        if data.strip():
            yield Line(start, data)


def read_jsonl(shard: Shard, file: BinaryIO, config: SourceConfig, opener: Opener) -> Iterator[Row]:
    """The rows of a shard's run of lines; images are read one by one through the opener.

    Raises:
        ShardDamaged: the last line is cut off, or lines are missing that were there when the file was split.
    """
    first, stop = shard.rows or (0, None)
    root = config.image_root or folder_of(shard.uri)
    file.seek(shard.offset)
    number = first
    for line in lines(file):
        if number == stop:
            return
        yield _row(number, line, config, root, opener)
        number += 1
    if stop is not None and number < stop:
        raise ShardDamaged(Reason.SHARD_TRUNCATED, f"the file ends before row {stop}, which it had when it was split")


def _row(number: int, line: Line, config: SourceConfig, root: str, opener: Opener) -> Row:
    key = str(number)
    record: Mapping[str, object] | Rejected
    try:
        if len(line.data) > MAX_LINE_BYTES:
            raise Rejected(Reason.TEXT_MALFORMED, f"a line of more than {MAX_LINE_BYTES} bytes")
        record = parse_object(line.data)
        key = key_of(record, config.key_column, number)
    except Rejected as fault:
        if not line.data.endswith(b"\n") and len(line.data) <= MAX_LINE_BYTES:
            raise ShardDamaged(Reason.SHARD_TRUNCATED, f"the last line is cut off: {fault.detail}") from None
        return Row(key, fault, tuple)
    return Row(key, record, partial(read_images, record.get(config.image_column), root, opener))
