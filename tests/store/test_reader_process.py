"""A process that reads into shared memory does what threads do, and is replaced when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from trio_ray.child_process import SharedMemory
from trio_ray.config import S3Config
from trio_ray.errors import ObjectDamaged, ObjectMissing, StoreError
from trio_ray.store.objects import ObjectStore
from trio_ray.store.reader_process import ReaderProcess
from trio_ray.store.spans import Span, read_span

SIZE = 300_000


@pytest.fixture
def stored(store: ObjectStore) -> ObjectStore:
    """Two objects of random bytes."""
    for number in range(2):
        store.put(f"data/{number}", content(number))
    return store


@pytest.fixture
def reader(stored: ObjectStore, request: pytest.FixtureRequest) -> Iterator[ReaderProcess]:
    """Of the same store."""
    is_s3 = stored.uri.startswith("s3://")
    s3 = request.getfixturevalue("s3_environment").config if is_s3 else S3Config()
    process = ReaderProcess(stored.uri, s3, threads=3, at_once=2)
    yield process
    process.close()


_numbers = count()


def new_memory(size: int) -> SharedMemory:
    """With a number of its own."""
    return SharedMemory.make(next(_numbers), size)


def content(number: int) -> bytes:
    return np.random.default_rng(number).integers(0, 256, SIZE, np.uint8).tobytes()


def has_ended(pid: int) -> bool:
    """Gone, or dead and waited for by nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    """At most some seconds."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it has not come")


def test_spans_are_read_into_their_places(stored: ObjectStore, reader: ReaderProcess) -> None:
    """With what is wrong with each piece: an object that is gone, and one that ends within a span."""
    spans = [
        Span("data/0", 1000, 0, 5000, ((0, 2000), (2500, 5000))),
        Span("data/1", 0, 8192, SIZE, ((8192, 8192 + SIZE),)),
        Span("data/gone", 0, 400_000, 10, ((400_000, 400_010),)),
        Span("data/1", SIZE - 20, 500_000, 40, ((500_000, 500_010), (500_030, 500_040))),
    ]
    memory = new_memory(1 << 20)
    outcomes = reader.read(memory, spans)
    expected = bytearray(1 << 20)
    by_thread = [read_span(stored, span, memoryview(expected)) for span in spans]
    assert [[type(piece) for piece in span] for span in outcomes] == [
        [type(None)] * 2,
        [type(None)],
        [ObjectMissing],
        [type(None), ObjectDamaged],
    ]
    assert [[str(piece) for piece in span] for span in outcomes] == [
        [str(piece) for piece in span] for span in by_thread
    ]
    for span in spans[:2]:
        for first, end in span.pieces:
            assert memory.view[first:end] == expected[first:end]
    assert memory.view[500_000:500_010] == content(1)[-20:-10]


def test_any_other_error_is_raised_and_the_process_goes_on(reader: ReaderProcess) -> None:
    memory = new_memory(4096)
    with pytest.raises(StoreError, match="is not the name of an object"):
        reader.read(memory, [Span("data/0", 0, 0, 10, ((0, 10),)), Span("../other", 0, 10, 10, ((10, 20),))])
    pid = reader.pid
    assert reader.read(memory, [Span("data/0", 5, 0, 10, ((0, 10),))]) == [[None]]
    assert memory.view[:10] == content(0)[5:15]
    assert reader.pid == pid


def test_a_killed_process_is_replaced_and_nothing_is_lost(stored: ObjectStore, reader: ReaderProcess) -> None:
    """It is killed again and again while two threads read."""
    if stored.uri.startswith("s3://"):
        pytest.skip("the same for every store")
    wrong: list[object] = []
    done = [0, 0]

    def read(number: int) -> None:
        memory = new_memory(SIZE)
        while done[number] < 60:
            memory.view[:] = bytes(SIZE)
            outcomes = reader.read(memory, [Span(f"data/{number}", 0, 0, SIZE, ((0, SIZE),))])
            if outcomes != [[None]] or memory.view[:] != content(number):
                wrong.append(outcomes)
            done[number] += 1

    threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    killed = set()
    for reached in (5, 20, 40):  # a process that has read is killed, so that no request meets two that are
        wait_until(lambda reached=reached: min(done) >= reached)
        if (pid := reader.pid) is not None:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    for thread in threads:
        thread.join()
    assert not wrong
    assert done == [60, 60]
    assert len(killed) > 1


def test_one_that_ends_at_once_is_an_error_that_says_so(reader: ReaderProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_ray.store.reader_process.MODULE", "tests.store.ends_at_once")
    with pytest.raises(StoreError, match=r"ended 2 times \(exit code 3\)"):
        reader.read(new_memory(4096), [])


def test_it_ends_with_the_process_that_started_it(stored: ObjectStore) -> None:
    """However that ends."""
    if stored.uri.startswith("s3://"):
        pytest.skip("the same for every store")
    program = (
        "import time; from trio_ray.config import S3Config; from trio_ray.store.reader_process import *\n"
        f"reader = ReaderProcess({stored.uri!r}, S3Config(), 2, 2)\n"
        "reader.read(SharedMemory.make(0, 4096), []); print(reader.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not has_ended(pid)
        parent.kill()
        wait_until(lambda: has_ended(pid))


def test_memory_that_nobody_holds_is_given_back_by_the_process_too(reader: ReaderProcess) -> None:
    def mapped() -> int:
        return Path(f"/proc/{reader.pid}/maps").read_text().count("memfd:trio_ray")

    memory = new_memory(4096)
    for _ in range(5):
        reader.read(new_memory(4096), [])
        reader.read(memory, [])
    assert mapped() == 1
