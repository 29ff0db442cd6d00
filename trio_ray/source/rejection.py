"""What stops one sample, and what ends a shard early.

Neither ever stops the job: both end as quarantine rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from trio_ray.errors import TrioRayError
from trio_ray.source.sample import Reason

_DETAIL_CHARACTERS = 600
_VALUE_CHARACTERS = 80
_NAMES_SHOWN = 12


class Rejected(TrioRayError):
    """One sample cannot be used.

    `reason` is what the quarantine table stores, `detail` what a person reads: bounded, whatever the record holds.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        detail = bounded(detail, _DETAIL_CHARACTERS)
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class ShardDamaged(TrioRayError):
    """Nothing can be read of a shard from here on; the samples before this point are sound."""

    def __init__(self, reason: Literal[Reason.SHARD_TRUNCATED, Reason.SHARD_UNREADABLE], detail: str) -> None:
        detail = bounded(detail, _DETAIL_CHARACTERS)
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


def bounded(text: str, characters: int = _VALUE_CHARACTERS) -> str:
    """The text, or its beginning and end where it is long, with lone surrogates escaped so that tables can hold it."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} ... {text[-half:]} ({len(text)} characters)"


def shown(value: object) -> str:
    """A value of a record for a message: short, and never the bytes of an image."""
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return repr(value) if len(value) <= _VALUE_CHARACTERS else f"{value[:40]!r}... ({len(value)} characters)"
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 53:
        return repr(value)
    if value is None:
        return "nothing"
    return f"a value of type {type(value).__name__}"


def listed(names: Iterable[object]) -> str:
    """Names of fields or members for a message: the first of them, each short, and how many more there are."""
    texts = [bounded(str(name), 40) for name in names]
    more = f" and {len(texts) - _NAMES_SHOWN} more" if len(texts) > _NAMES_SHOWN else ""
    return (", ".join(texts[:_NAMES_SHOWN]) or "none") + more
