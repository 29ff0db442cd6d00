"""What both stores promise."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event

import pytest

from trio_ray.errors import ObjectDamaged, ObjectMissing, StoreError
from trio_ray.store.objects import ObjectStore

PIECE = 5 << 20


def test_an_object_reads_back_whole_and_by_range(store: ObjectStore) -> None:
    data = random.Random(1).randbytes(300_000)
    store.put("folder/object", data)
    assert store.read("folder/object") == data
    for offset, length in [(0, 1), (0, 300_000), (299_999, 1), (123_456, 70_000), (5, 0)]:
        assert store.read_range("folder/object", offset, length) == data[offset : offset + length]
    assert store.stat("folder/object").size == 300_000


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (9, 2), (10, 1), (500, 5)])
def test_a_range_beyond_the_end_is_damage(store: ObjectStore, offset: int, length: int) -> None:
    store.put("object", b"0123456789")
    with pytest.raises(ObjectDamaged, match=r"object: .*truncated"):
        store.read_range("object", offset, length)


def test_ranges_are_read_straight_into_the_callers_memory(store: ObjectStore) -> None:
    data = random.Random(2).randbytes(3 << 20)
    store.put("object", data)
    memory = bytearray(b"x" * (4 << 20))
    store.read_into("object", 7, memoryview(memory)[100 : 100 + (2 << 20)])
    assert memory[100 : 100 + (2 << 20)] == data[7 : 7 + (2 << 20)]
    assert set(memory[:100]) == set(memory[100 + (2 << 20) :]) == {ord("x")}


def test_a_file_of_another_version_than_the_listed_one_is_refused(store: ObjectStore) -> None:
    """Input that is replaced between planning and reading must not be taken for what was planned."""
    store.put("input", b"one")
    listed = store.stat("input").etag
    with store.open("input", listed) as file:
        assert file.read() == b"one"
    time.sleep(0.01)
    store.put("input", b"two")
    with pytest.raises(ObjectDamaged, match=r"input: was replaced since it was listed"):
        store.open("input", listed)
    with store.open("input") as file:
        assert file.read() == b"two"


def test_a_missing_object_is_a_typed_error_and_deleting_it_is_none(store: ObjectStore) -> None:
    for ask in (store.read, store.stat, store.open, lambda name: store.read_range(name, 0, 1)):
        with pytest.raises(ObjectMissing, match="no/such"):
            ask("no/such")
    store.delete("no/such")
    store.put("a", b"1")
    store.delete("a")
    assert list(store.list()) == []


def test_put_replaces_and_changes_the_etag(store: ObjectStore) -> None:
    store.put("a", b"one")
    before = store.stat("a")
    time.sleep(0.01)
    store.put("a", memoryview(b"other"))
    assert store.read("a") == b"other"
    assert store.stat("a").etag != before.etag
    assert next(iter(store.list("a"))).etag == store.stat("a").etag


def test_of_16_racing_creators_one_wins_and_its_content_stays(store: ObjectStore) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: store.create("commits/x", b"by %d" % number), range(16)))
    assert won.count(True) == 1
    assert store.read("commits/x") == b"by %d" % won.index(True)
    assert [info.name for info in store.list()] == ["commits/x"]


def test_creating_again_with_the_same_content_is_still_a_loss(store: ObjectStore) -> None:
    assert store.create("a", b"same")
    assert not store.create("a", b"same")


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE + 12345])
def test_a_streamed_object_appears_whole_at_close_and_not_before(store: ObjectStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with store.writer("streamed") as writer:
        for start in range(0, size, 1_000_003):
            writer.write(memoryview(data)[start : start + 1_000_003])
        assert list(store.list()) == []
    assert store.read("streamed") == data
    assert list(store.list_unfinished()) == []


def test_an_aborted_or_failed_write_leaves_nothing(store: ObjectStore) -> None:
    aborted = store.writer("aborted")
    aborted.write(bytes(2 * PIECE))
    aborted.abort()

    def write_and_fail() -> None:
        with store.writer("failed") as failed:
            failed.write(bytes(2 * PIECE))
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert list(store.list()) == []
    assert list(store.list_unfinished()) == []


def _write_for_ever(store: ObjectStore, started: Event) -> None:
    writer = store.writer("data/victim")
    for written in itertools.count(1):
        writer.write(bytes(1 << 20))
        if written == 3 * PIECE >> 20:  # by now a multipart upload is open, with a piece in it
            started.set()
        time.sleep(0.001)


def test_a_killed_writer_leaves_nothing_visible(store: ObjectStore) -> None:
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    process = spawn.Process(target=_write_for_ever, args=(store, started))  # pickles the store, as Ray does
    process.start()
    assert started.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(store.list()) == []
    with pytest.raises(ObjectMissing):
        store.read("data/victim")
    leftovers = list(store.list_unfinished())
    assert len(leftovers) == 1
    for leftover in leftovers:
        store.remove_unfinished(leftover)
        store.remove_unfinished(leftover)
    assert list(store.list_unfinished()) == []


def test_a_listing_has_all_of_more_than_1000_objects_once_each_and_only_the_prefix(
    store: ObjectStore,
) -> None:
    names = [f"many/{number:05d}.json" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, name.encode()), [*names, "manyother", "other/x"]))
    assert [info.name for info in store.list("many/")] == names
    assert [info.name for info in store.list("many/000")] == names[:100]
    assert len(list(store.list())) == 1102
    assert {info.size for info in store.list("many/")} == {15}


def test_an_opened_object_seeks_and_reads_like_a_file(store: ObjectStore) -> None:
    data = random.Random(3).randbytes(3_500_000)
    store.put("big", data)
    generator = random.Random(4)
    with store.open("big") as file:
        assert file.readable()
        assert file.seekable()
        for _ in range(25):
            offset, length = generator.randrange(len(data)), generator.choice([1, 100, 10_000, 2_000_000])
            assert file.seek(offset) == offset
            assert file.read(length) == data[offset : offset + length]
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
        assert file.read(1) == b""
        file.seek(0)
        assert file.read() == data


@pytest.mark.parametrize("name", ["", "../outside", "a/../../outside", "/etc/passwd", "a/./b", "nul\0"])
def test_a_name_never_leaves_the_root(store: ObjectStore, name: str) -> None:
    with pytest.raises(StoreError, match="not the name of an object"):
        store.put(name, b"x")
    with pytest.raises(StoreError, match="not the name of an object"):
        store.read(name)


def test_a_pickled_store_is_the_same_store(store: ObjectStore) -> None:
    store.put("a", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.uri == store.uri
    assert copy.read("a") == b"1"
    assert b"SECRET" not in pickle.dumps(store).upper()


def test_a_writable_root_passes_the_check_and_stays_empty(store: ObjectStore) -> None:
    store.check_writable()
    assert list(store.list()) == []
    assert list(store.list_unfinished()) == []


def test_many_objects_are_deleted_together_and_lost_ones_are_no_fault(store: ObjectStore) -> None:
    names = [f"many/{number}" for number in range(5)]
    for name in names:
        store.put(name, b"x")
    store.put("other", b"x")
    store.delete_all(iter([*names, "many/nothing"]))
    assert [info.name for info in store.list()] == ["other"]
