"""Reading ranges in a process of its own, into memory that it shares with the process that wants them.

Threads that read take Python's lock several times for each range, and the thread that gives a GPU its work waits for
it every time. The other process opens the same store, with the environment that this one has when it is started.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

from trio_ray.child_process import ChildProcess, SharedMemory, given_pipes, receive
from trio_ray.config import S3Config
from trio_ray.errors import StoreError, TrioRayError
from trio_ray.ordered import map_all
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store
from trio_ray.store.spans import Outcome, Span, read_span

MODULE = "trio_ray.store.reader_process"
ATTEMPTS = 2
"""How often a request is made, each time of another process where one has ended."""

log = logging.getLogger(__name__)


class ReaderProcess:
    """A process that reads ranges of a store. It is started by the first request. Threads may share it.

    Args:
        uri: of the store.
        s3: how it is reached.
        threads: requests to the store in flight, of all requests to the process together.
        at_once: requests to the process that are served at the same time.
    """

    def __init__(self, uri: str, s3: S3Config, threads: int, at_once: int) -> None:
        self._settings = _Settings(uri, s3, threads)
        self._at_once = at_once
        self._child: _Child | None = None
        self._starting = threading.Lock()

    def read(self, memory: SharedMemory, spans: Sequence[Span]) -> list[list[Outcome]]:
        """Fill the spans' places in the memory.

        Args:
            memory: has a number that no other memory has that this process reads into.
            spans: what to read, and where to.

        Returns:
            For each span what `read_span` returns.

        Raises:
            StoreError: what `read_span` raises, of the first span that it was raised for; nothing is being read into
                the memory any more by then. Or the process ended, and so did the one in its place.
        """
        for _ in range(ATTEMPTS):
            child = self._running()
            try:
                return child.read(memory, spans)
            except (EOFError, OSError):
                self._retire(child)
        code = child.process.returncode
        raise StoreError(
            self._settings.uri,
            f"the process that reads it ended {ATTEMPTS} times (exit code {code}); is there enough memory?",
        )

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        child = self._child
        return child.process.pid if child is not None and child.process.runs else None

    def close(self) -> None:
        """End the process. No request may be under way; a later one starts another process."""
        with self._starting:
            child, self._child = self._child, None
        if child is not None:
            child.process.end()

    def _running(self) -> _Child:
        with self._starting:
            if self._child is None:
                self._child = _Child(self._settings, self._at_once)
            return self._child

    def _retire(self, child: _Child) -> None:
        """Use a process no more that has ended. All threads that wait for it come here."""
        with self._starting:
            is_first = self._child is child
            if is_first:
                self._child = None
        child.process.kill()  # waits until its exit code is known
        if is_first:
            code = child.process.returncode
            log.warning("the process that reads %s ended (exit code %s); it is started again", self._settings.uri, code)


@dataclass(frozen=True)
class _Settings:
    uri: str
    s3: S3Config
    threads: int


@dataclass(frozen=True)
class _Request:
    """Read spans into the memory of this number; others are no longer wanted."""

    number: int
    spans: Sequence[Span]
    unwanted: Sequence[int]


class _Child:
    """One process, each of whose pipes serves one request at a time."""

    def __init__(self, settings: _Settings, at_once: int) -> None:
        self.process = ChildProcess(MODULE, at_once)
        self._free: SimpleQueue[Connection] = SimpleQueue()
        self._unwanted: SimpleQueue[int] = SimpleQueue()
        with contextlib.suppress(OSError):  # the first request will notice
            self.process.pipes[0].send(settings)
        for pipe in self.process.pipes:
            self._free.put(pipe)

    def read(self, memory: SharedMemory, spans: Sequence[Span]) -> list[list[Outcome]]:
        """See `ReaderProcess`. Raises `EOFError` or `OSError` where the process has ended."""
        pipe = self._free.get()
        try:
            if self.process.show(pipe, memory):
                weakref.finalize(memory, self._unwanted.put, memory.number).atexit = False
            pipe.send(_Request(memory.number, spans, self._take_unwanted()))
            answer = pipe.recv()
        finally:
            self._free.put(pipe)
        if isinstance(answer, Exception):
            raise answer
        found: list[list[Outcome]] = answer
        return found

    def _take_unwanted(self) -> list[int]:
        """Memories that nobody holds any more."""
        numbers = []
        with contextlib.suppress(Empty):
            while True:
                numbers.append(self._unwanted.get_nowait())
        return numbers


@dataclass(frozen=True)
class _Served:
    """A store, threads that read from it, and by number the memories that they read into."""

    store: ObjectStore
    pool: ThreadPoolExecutor
    memories: dict[int, SharedMemory] = field(default_factory=dict)

    def answer(self, pipe: Connection) -> None:
        """Serve one pipe until it is closed."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = receive(pipe)
                if isinstance(message, SharedMemory):
                    self.memories[message.number] = message
                else:
                    pipe.send(self._answered(message))

    def _answered(self, request: _Request) -> list[list[Outcome]] | Exception:
        try:
            return self._read(request)
        except TrioRayError as error:
            return error
        except Exception:  # whether it could be pickled is not known
            return RuntimeError(f"the process that reads failed:\n{traceback.format_exc()}")

    def _read(self, request: _Request) -> list[list[Outcome]]:
        for number in request.unwanted:
            self.memories.pop(number, None)
        buffer = memoryview(self.memories[request.number].view)
        return map_all(self.pool, lambda span: read_span(self.store, span, buffer), request.spans)


def main() -> None:
    """Answer requests, until the process that started this one closes the pipes or ends."""
    pipes = given_pipes()
    try:
        settings: _Settings = pipes[0].recv()
    except (EOFError, OSError):
        return
    with ThreadPoolExecutor(settings.threads) as pool:
        served = _Served(open_store(settings.uri, settings.s3), pool)
        threads = [threading.Thread(target=served.answer, args=(pipe,)) for pipe in pipes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
