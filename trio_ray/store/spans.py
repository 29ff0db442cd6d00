"""Ranges that stand near each other in an object, read by one request into one buffer."""

from __future__ import annotations

from dataclasses import dataclass

from trio_ray.errors import ObjectDamaged, ObjectMissing
from trio_ray.store.objects import ObjectStore

Outcome = ObjectMissing | ObjectDamaged | None
"""What is wrong with a piece; None if it has been read."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of one object, and the place of a buffer that they are for.

    Attributes:
        name: of the object.
        offset: of the first byte in it.
        start: of the first byte in the buffer.
        size: bytes, those between pieces included.
        pieces: of each piece its first byte and the one behind its last, in the buffer; in order.
    """

    name: str
    offset: int
    start: int
    size: int
    pieces: tuple[tuple[int, int], ...]


def read_span(store: ObjectStore, span: Span, buffer: memoryview) -> list[Outcome]:
    """Fill a span's place.

    Returns:
        For each piece what is wrong with it; its place then holds anything.

    Raises:
        StoreError: the store failed in another way than for a lost or damaged object.
    """
    if len(span.pieces) > 1:
        try:
            store.read_into(span.name, span.offset, buffer[span.start : span.start + span.size])
        except (ObjectMissing, ObjectDamaged):
            pass  # the first pieces of a truncated object may be whole
        else:
            return [None] * len(span.pieces)
    return [_read_piece(store, span, piece, buffer) for piece in span.pieces]


def _read_piece(store: ObjectStore, span: Span, piece: tuple[int, int], buffer: memoryview) -> Outcome:
    first, end = piece
    try:
        store.read_into(span.name, span.offset + first - span.start, buffer[first:end])
    except (ObjectMissing, ObjectDamaged) as error:
        return error
    return None
