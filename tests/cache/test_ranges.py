"""Neighbours are read together, each is checked alone, and one that is lost costs no other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ray.cache.ranges import Member, coalesce_ranges, read_runs
from trio_ray.cache.unreadable import PrefixDamaged, PrefixMissing, UnreadablePrefix
from trio_ray.kv.container import checksum
from trio_ray.store.local import LocalStore


class CountingStore(LocalStore):
    """A folder that counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: Counter[str] = Counter()

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See `LocalStore`."""
        self.asked[name] += 1
        super().read_into(name, offset, buffer)


def member(number: int, offset: int, length: int, name: str = "a.tar", data: bytes = b"") -> Member:
    return Member(number, f"k{number}", name, offset, length, checksum(data))


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path)


def written(store: CountingStore, lengths: list[int], gap: int = 512) -> list[Member]:
    """An object with members of these lengths, and where they are."""
    data, members = bytearray(), []
    for number, length in enumerate(lengths):
        data += bytes(gap)
        content = bytes([number + 1]) * length
        members.append(member(number, len(data), length, data=content))
        data += content
    store.put("a.tar", bytes(data))
    return members


def read(store: CountingStore, members: list[Member]) -> list[bytes | UnreadablePrefix]:
    """What becomes of members that one request can read."""
    (run,), size = coalesce_ranges(members)
    buffer = bytearray(size)
    errors = read_runs(store, [run], memoryview(buffer))
    return [errors[each.number] or bytes(buffer[run.place(each)]) for each in members]


def test_members_near_each_other_are_one_request(store: CountingStore) -> None:
    members = written(store, [100, 2000, 30])
    assert read(store, members[::-1]) == [b"\3" * 30, b"\2" * 2000, b"\1" * 100]
    assert store.asked == {"a.tar": 1}


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (member(1, 1000, 10, "b.tar"), "another object"),
        (member(1, 100, 10), "the same once more"),
        (member(1, 105, 10), "over the first one's end"),
        (member(1, 10 << 20, 10), "far behind"),
        (member(1, 700, 8 << 20), "too large together"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_near_is_a_request_of_its_own(second: Member, why: str) -> None:
    first = member(0, 100, 10)
    runs, _ = coalesce_ranges([first, second])
    assert [run.members for run in runs] == [(first,), (second,)]


@given(
    places=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 300), st.integers(0, 50)), max_size=30),
    largest=st.integers(1, 400),
)
def test_runs_keep_every_member_apart_from_others_and_within_the_size(
    places: list[tuple[str, int, int]], largest: int
) -> None:
    members = [member(number, offset, length, name) for number, (name, offset, length) in enumerate(places)]
    runs, size = coalesce_ranges(members, largest)
    assert sorted(each for run in runs for each in run.members) == sorted(members)
    assert all(len(run.members) == 1 or run.size <= largest for run in runs)
    taken = [byte for run in runs for byte in range(run.start, run.start + run.size)]
    assert len(taken) == len(set(taken))
    assert all(byte < size for byte in taken)


def test_a_member_that_fails_its_checksum_leaves_its_neighbours_alone(store: CountingStore) -> None:
    members = written(store, [100, 200, 300])
    data = bytearray(store.read("a.tar"))
    data[members[1].offset + 7] ^= 1
    store.put("a.tar", bytes(data))
    first, second, third = read(store, members)
    assert (first, third) == (b"\1" * 100, b"\3" * 300)
    assert isinstance(second, PrefixDamaged)
    assert (second.key, second.uri) == ("k1", store.uri_of("a.tar"))


def test_the_whole_members_of_a_cut_off_object_are_still_read(store: CountingStore) -> None:
    members = written(store, [100, 200, 300])
    store.put("a.tar", store.read("a.tar")[: members[1].end + 5])
    first, second, third = read(store, members)
    assert (first, second) == (b"\1" * 100, b"\2" * 200)
    assert isinstance(third, PrefixDamaged)
    assert "truncated" in str(third)


def test_a_lost_object_is_named_with_every_key(store: CountingStore) -> None:
    members = written(store, [100, 200])
    store.delete("a.tar")
    errors: list[Any] = read(store, members)
    assert [(type(error), error.key, error.uri) for error in errors] == [
        (PrefixMissing, key, store.uri_of("a.tar")) for key in ("k0", "k1")
    ]
