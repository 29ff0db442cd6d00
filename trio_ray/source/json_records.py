"""JSON with one record a line (`.jsonl`) or in one array (`.json`); records name or carry their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import BinaryIO

from trio_ray.config import SourceConfig
from trio_ray.source.image_files import ImagePlaces, read_images
from trio_ray.source.json_array import array_records
from trio_ray.source.options import image_name, matching
from trio_ray.source.record import KEY_FIELDS, Row, key_of, parse_record, row_key
from trio_ray.source.rejection import Rejected, ShardDamaged
from trio_ray.source.sample import Opener, Reason, Shard
from trio_ray.source.text_lines import MAX_RECORD_BYTES, TextRecord, lines


def text_records(file: BinaryIO, kind: str, config: SourceConfig, offset: int = 0) -> Iterator[TextRecord]:
    """The records of a file from `offset` on.

    Raises:
        ShardDamaged: a `.json` file ends early or is garbled.
    """
    return array_records(file, config.records, offset) if kind == "json" else lines(file, offset)


def read_json_records(shard: Shard, file: BinaryIO, config: SourceConfig, opener: Opener) -> Iterator[Row]:
    """The rows of a shard's run of records; images are read one by one through the opener.

    Raises:
        ShardDamaged: the file ends early, or records are missing that were there when the file was split.
    """
    first, stop = shard.rows or (0, None)
    number = first
    for record in text_records(file, shard.format, config, shard.offset):
        if number == stop:
            return
        yield _row(number, record, shard, config, opener)
        number += 1
    if stop is not None and number < stop:
        raise ShardDamaged(Reason.SHARD_TRUNCATED, f"the file ends before row {stop}, which it had when it was split")


def _row(number: int, text: TextRecord, shard: Shard, config: SourceConfig, opener: Opener) -> Row:
    key = row_key(config, shard.uri, number)
    try:
        if len(text.data) > MAX_RECORD_BYTES:
            raise Rejected(Reason.TEXT_MALFORMED, f"a record of more than {MAX_RECORD_BYTES} bytes")
        record: Mapping[str, object] = parse_record(text.data)
        if text.name is not None and not any(name in record for name in KEY_FIELDS):
            record = {"key": text.name, **record}
        key = key_of(record, config, shard.uri, number)
    except Rejected as fault:
        if shard.format == "jsonl" and not text.data.endswith(b"\n") and len(text.data) <= MAX_RECORD_BYTES:
            raise ShardDamaged(Reason.SHARD_TRUNCATED, f"the last line is cut off: {fault.detail}") from None
        return Row(key, fault, tuple)
    return Row(key, record, partial(_images, record, shard.uri, config, opener))


def _images(record: Mapping[str, object], uri: str, config: SourceConfig, opener: Opener) -> tuple[bytes, ...]:
    places = ImagePlaces.of(uri, config)
    if config.image_name is not None:
        return read_images(image_name(config.image_name, record), places, opener)
    names = matching(record, config.image_column)
    return tuple(image for name in names for image in read_images(record[name], places, opener))
