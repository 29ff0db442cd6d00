"""Members of tars as bytes: neighbours of one object by one request, each compared with its own checksum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from trio_ray.cache.unreadable import PrefixDamaged, UnreadablePrefix, unreadable
from trio_ray.errors import ObjectDamaged, ObjectMissing
from trio_ray.kv.container import checksum
from trio_ray.store.objects import ObjectStore

REQUEST_BYTES = 8 << 20
"""Most bytes that neighbours are read by together: from there on a request's own cost no longer shows."""

_GAP_BYTES = 64 << 10
"""Largest gap that is read rather than left out: a tar header and padding take about 1 KiB."""

Row = dict[str, Any]


class Member(NamedTuple):
    """What is stored beside a row, and where: bytes `offset .. end` of the object `name`."""

    row: Row
    name: str
    offset: int
    length: int
    checksum: str

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


def neighbours(members: Iterable[Member], most_bytes: int = REQUEST_BYTES) -> Iterator[list[Member]]:
    """Cut members, in their order, into runs that one request can read.

    A run lies in one object, one member behind the other. One larger than `most_bytes` is a run of its own.
    """
    run: list[Member] = []
    for member in members:
        if run and not _follows(run, member, most_bytes):
            yield run
            run = []
        run.append(member)
    if run:
        yield run


def run_bytes(run: Sequence[Member]) -> int:
    """Bytes that reading a run takes."""
    return run[-1].end - run[0].offset


def read_run(store: ObjectStore, run: Sequence[Member]) -> list[bytes | UnreadablePrefix]:
    """The bytes of a run's members, or why one has none.

    Raises:
        StoreError: the store failed in another way than for a lost or damaged object.
    """
    if len(run) == 1:
        return [_read_one(store, run[0])]
    start = run[0].offset
    try:
        data = memoryview(store.read_range(run[0].name, start, run_bytes(run)))
    except (ObjectMissing, ObjectDamaged):
        return [_read_one(store, member) for member in run]  # the first members of a cut off object may be whole
    return [_checked(store, member, bytes(data[member.offset - start : member.end - start])) for member in run]


def _read_one(store: ObjectStore, member: Member) -> bytes | UnreadablePrefix:
    try:
        data = store.read_range(member.name, member.offset, member.length)
    except (ObjectMissing, ObjectDamaged) as error:
        return unreadable(member.row["key"], error)
    return _checked(store, member, data)


def _checked(store: ObjectStore, member: Member, data: bytes) -> bytes | UnreadablePrefix:
    if checksum(data) == member.checksum:
        return data
    message = "its bytes are not those that were written (checksum differs)"
    return PrefixDamaged(member.row["key"], store.uri_of(member.name), message)


def _follows(run: Sequence[Member], member: Member, most_bytes: int) -> bool:
    return (
        member.name == run[-1].name
        and 0 <= member.offset - run[-1].end <= _GAP_BYTES
        and member.end - run[0].offset <= most_bytes
    )
