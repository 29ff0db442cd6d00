"""Small JSON records that carry their own checksum.

The bytes are canonical (sorted keys, no spaces, UTF-8), and `checksum` is the xxh3-128 of the record without
it. A reader rebuilds the bytes and compares them, so that not even a changed space goes unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from trio_ray.errors import ObjectDamaged

CHECKSUM_FIELD = "checksum"


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value. Raises `ValueError` for NaN and infinities, which JSON has not."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def dump_record(fields: Mapping[str, Any]) -> bytes:
    """`fields` plus their checksum, as bytes."""
    plain = {name: value for name, value in fields.items() if name != CHECKSUM_FIELD}
    return canonical_json({**plain, CHECKSUM_FIELD: xxhash.xxh3_128_hexdigest(canonical_json(plain))})


def load_record(data: bytes, uri: str) -> dict[str, Any]:
    """The fields of a record, without the checksum.

    Raises `ObjectDamaged` if any byte is not as it was written.
    """
    try:
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        intact = dump_record(fields) == data
    except (ValueError, RecursionError):  # bad UTF-8 and bad JSON are ValueErrors too
        raise ObjectDamaged(
            uri, "is not a JSON record; restore it from a copy, or delete it to make it again"
        ) from None
    if not intact:
        raise ObjectDamaged(uri, "its checksum does not fit; restore it from a copy, or delete it to make it again")
    fields.pop(CHECKSUM_FIELD, None)
    return fields
