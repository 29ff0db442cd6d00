"""Batches that are fetched and restored ahead: order, errors, and memory that is still in use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trio_ray.cache.ahead import FetchAhead, Finished, RestoreAhead
from trio_ray.cache.arena import Arena, Stock
from trio_ray.cache.fetched import Fetched, ThreadReader, Wanted
from trio_ray.config import S3Config
from trio_ray.errors import StoreError
from trio_ray.kv.target import TargetsInUse
from trio_ray.store.opening import open_store


def fetch_ahead(folder: Path, numbers: Iterator[int], ahead: int = 2) -> FetchAhead[int]:
    """Batches of nothing, whose number is the bytes of their block."""

    def prepare(fetched: Fetched) -> int:
        assert fetched.block is not None
        fetched.block.release()
        return len(fetched.data)

    wanted = (Wanted([], [], number) for number in numbers)
    reader = ThreadReader(open_store(str(folder), S3Config()), 2, 1)
    return FetchAhead(reader, wanted, prepare, ahead, Arena(Stock(1 << 24)))


@dataclass
class Begun:
    """A batch on a device that is done when the test says so."""

    number: int
    done: threading.Event = field(default_factory=threading.Event)

    def is_done(self) -> bool:
        return self.done.is_set()

    def finish(self) -> int:
        return self.number


def wait_until(condition: Callable[[], bool]) -> None:
    """At most some seconds."""
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it has not come")


def test_batches_come_in_order_and_the_end_is_ready(tmp_path: Path) -> None:
    restored = RestoreAhead(fetch_ahead(tmp_path, iter(range(1, 20))), Finished)
    assert list(restored) == list(range(1, 20))
    with pytest.raises(StopIteration):
        next(restored)
    restored.close()


def test_a_batch_is_ready_once_it_has_come_and_the_device_is_done(tmp_path: Path) -> None:
    gate, begun = threading.Event(), []

    def numbers() -> Iterator[int]:
        gate.wait(10)
        yield 1

    def start(number: int) -> Begun:
        begun.append(Begun(number))
        return begun[-1]

    restored = RestoreAhead(fetch_ahead(tmp_path, numbers()), start)
    assert not restored.ready()
    gate.set()
    wait_until(lambda: restored.ready() or bool(begun))
    assert not restored.ready(), "the device is at work"
    begun[0].done.set()
    assert restored.ready()
    assert next(restored) == 1
    restored.close()


class AllCame:
    """Batches that have all been fetched."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)

    def __next__(self) -> int:
        return next(self._numbers)

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


def test_the_next_batch_is_begun_before_one_is_waited_for() -> None:
    log: list[str] = []

    @dataclass
    class Logged(Begun):
        def finish(self) -> int:
            log.append(f"wait {self.number}")
            return self.number

    def start(number: int) -> Begun:
        log.append(f"begin {number}")
        return Logged(number)

    assert list(RestoreAhead(AllCame((1, 2, 3)), start)) == [1, 2, 3]
    assert log == ["begin 1", "begin 2", "wait 1", "begin 3", "wait 2", "wait 3"]


def test_an_error_comes_behind_the_batches_before_it(tmp_path: Path) -> None:
    def numbers() -> Iterator[int]:
        yield from (1, 2)
        raise StoreError("bucket", "the store is gone")

    fetched = fetch_ahead(tmp_path, numbers(), ahead=8)
    restored = RestoreAhead(fetched, Finished)
    wait_until(fetched.ready)
    assert [next(restored), next(restored)] == [1, 2]
    with pytest.raises(StoreError, match="the store is gone"):
        next(restored)
    restored.close()


def test_a_batch_without_room_is_begun_when_the_one_before_has_been_used(tmp_path: Path) -> None:
    in_use: list[int] = []

    def start(number: int) -> Finished[int]:
        if in_use:
            raise TargetsInUse("one is kept")
        in_use.append(number)
        return Finished(number)

    fetched = fetch_ahead(tmp_path, iter((1, 2, 3)))
    restored = RestoreAhead(fetched, start)
    found = []
    for _ in range(3):
        wait_until(lambda: fetched.ready() or len(found) == 2)
        found.append(next(restored))
        in_use.clear()
    assert found == [1, 2, 3]
    restored.close()


def test_memory_that_never_comes_free_is_said(tmp_path: Path) -> None:
    def start(number: int) -> Finished[int]:
        raise TargetsInUse("never")

    restored = RestoreAhead(fetch_ahead(tmp_path, iter((1,))), start)
    with pytest.raises(TargetsInUse):
        next(restored)
    restored.close()


def test_dropping_the_iterator_stops_its_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    restored = RestoreAhead(fetch_ahead(tmp_path, iter(range(1, 1000))), Finished)
    assert next(restored) == 1
    assert threading.active_count() > before
    del restored
    wait_until(lambda: threading.active_count() == before)
