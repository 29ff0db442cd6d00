"""Members of tars as bytes in one buffer: members near each other are read by one request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trio_ray.cache.unreadable import PrefixDamaged, UnreadablePrefix, unreadable
from trio_ray.kv.container import CHECKSUM_DIFFERS, checksum
from trio_ray.store.objects import ObjectStore
from trio_ray.store.spans import Outcome, Span, read_span

REQUEST_BYTES = 8 << 20
"""Upper bound on what members are read by together: from there on a request's own cost no longer shows."""

_GAP_BYTES = 64 << 10
"""Largest gap that is read rather than left out: a tar header and padding take about 1 KiB."""

_ALIGNMENT = 512
"""Bytes. Where runs begin in the buffer; tars align their members like this, so tensors in them stay aligned."""


class Member(NamedTuple):
    """What is stored of a sample, and where: `length` bytes from `offset` on of the object `name`."""

    number: int
    """Of the sample in its batch."""
    key: str
    name: str
    offset: int
    length: int
    checksum: str

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


@dataclass(frozen=True)
class Run:
    """Members of one object that one request reads, one behind the other, and the first byte of the buffer for them."""

    members: tuple[Member, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes that reading it takes, gaps included."""
        return self.members[-1].end - self.members[0].offset

    @property
    def span(self) -> Span:
        """What is read."""
        first = self.members[0]
        ahead = self.start - first.offset
        pieces = tuple([(ahead + member.offset, ahead + member.end) for member in self.members])
        return Span(first.name, first.offset, self.start, self.size, pieces)

    def described(self, outcomes: Sequence[Outcome]) -> dict[int, UnreadablePrefix | None]:
        """What became of its pieces as what became of its members, by number."""
        return {
            member.number: None if outcome is None else unreadable(member.key, outcome)
            for member, outcome in zip(self.members, outcomes, strict=True)
        }

    def place(self, member: Member) -> slice:
        """Where one of its members lies in the buffer."""
        first = self.start + member.offset - self.members[0].offset
        return slice(first, first + member.length)


def coalesce_ranges(members: Iterable[Member], largest: int = REQUEST_BYTES) -> tuple[list[Run], int]:
    """Put members into runs that one request can read, and lay the runs out in one buffer.

    Args:
        members: in any order.
        largest: upper bound on the bytes of a run of several members.

    Returns:
        The runs, by object and offset, and the bytes of the buffer.
    """
    runs: list[Run] = []
    open_: list[Member] = []
    size = 0

    def close() -> None:
        nonlocal size
        if open_:
            runs.append(Run(tuple(open_), size))
            size += -(-runs[-1].size // _ALIGNMENT) * _ALIGNMENT
            open_.clear()

    for member in sorted(members, key=lambda member: (member.name, member.offset, member.number)):
        if open_ and not _follows(open_, member, largest):
            close()
        open_.append(member)
    close()
    return runs, size


def read_runs(store: ObjectStore, runs: Iterable[Run], buffer: memoryview) -> dict[int, UnreadablePrefix | None]:
    """Read members into their places in the buffer, one run behind the other, and compare each with its checksum.

    Args:
        store: where they are.
        runs: of them.
        buffer: for them.

    Returns:
        By the member's number None, or why it cannot be used; its place then holds anything.

    Raises:
        StoreError: the store failed in another way than for a lost or damaged object.
    """
    found: dict[int, UnreadablePrefix | None] = {}
    for run in runs:
        outcomes = run.described(read_span(store, run.span, buffer))
        for member in run.members:
            outcomes[member.number] = outcomes[member.number] or _compare(store, member, buffer[run.place(member)])
        found |= outcomes
    return found


def _compare(store: ObjectStore, member: Member, data: memoryview) -> UnreadablePrefix | None:
    if checksum(data) == member.checksum:
        return None
    return PrefixDamaged(member.key, store.uri_of(member.name), CHECKSUM_DIFFERS)


def _follows(run: Sequence[Member], member: Member, largest: int) -> bool:
    return (
        member.name == run[-1].name
        and 0 <= member.offset - run[-1].end <= _GAP_BYTES
        and member.end - run[0].offset <= largest
    )
