"""Reading ranges in a process of its own, into memory that it shares with the process that wants them.

Threads that read take Python's lock several times for each range, and the thread that gives a GPU its work waits for
it every time. A second process has a lock of its own. It opens the same store, with the environment that this process
has when it is started, and ends when this one does.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from queue import Empty, SimpleQueue

from trio_ray.config import S3Config
from trio_ray.errors import StoreError, TrioRayError
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store
from trio_ray.store.spans import Outcome, Span, read_span

ATTEMPTS = 2
"""How often a request is made, each time of another process where one has ended."""
_STOP_S = 10
_COMMAND = "from trio_ray.store.reader_process import serve; serve()"
_numbers = count()

log = logging.getLogger(__name__)


class SharedMemory:
    """Memory of this process that a reader process can write to.

    Attributes:
        view: (size,) writable bytes; they stay valid as long as something refers to them.
        number: of the memory, in this process.
        file: a descriptor of it.
    """

    def __init__(self, size: int) -> None:
        self.number = next(_numbers)
        self.file = os.memfd_create("trio-ray")  # unlike /dev/shm, it has no limit of its own in a container
        weakref.finalize(self, os.close, self.file)
        os.ftruncate(self.file, size)
        self.view = _mapped(self.file, size)

    def __len__(self) -> int:
        return len(self.view)


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

        Returns:
            For each span what `read_span` returns.

        Raises:
            StoreError: what `read_span` raises, of the first span that it was raised for; nothing is being read into
                the memory any more by then. Or the process ended, and so did the one in its place.
        """
        code: int | None = None
        for _ in range(ATTEMPTS):
            child = self._running()
            try:
                return child.read(memory, spans)
            except (EOFError, ConnectionError):
                code = child.ended()
                log.warning("the process that reads %s ended (exit code %s); it is started again", self.uri, code)
        raise StoreError(
            self.uri, f"the process that reads it ended {ATTEMPTS} times (exit code {code}); is there enough memory?"
        )

    @property
    def uri(self) -> str:
        """Of the store."""
        return self._settings.uri

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        child = self._child
        return None if child is None or child.process.poll() is not None else child.process.pid

    def close(self) -> None:
        """End the process. No request may be under way; a later one starts another process."""
        with self._starting:
            child, self._child = self._child, None
        if child is not None:
            child.end()

    def _running(self) -> _Child:
        with self._starting:
            if self._child is None or self._child.process.poll() is not None:
                self._child = _Child(self._settings, self._at_once)
            return self._child


@dataclass(frozen=True)
class _Settings:
    uri: str
    s3: S3Config
    threads: int


@dataclass(frozen=True)
class _Mapping:
    """Says that a descriptor of shared memory follows."""

    number: int
    size: int


@dataclass(frozen=True)
class _Request:
    """Read spans into the memory of this number; others are no longer wanted."""

    number: int
    spans: Sequence[Span]
    unwanted: Sequence[int]


class _Child:
    """One process, and connections to it, each of which serves one request at a time."""

    def __init__(self, settings: _Settings, at_once: int) -> None:
        pairs = [Pipe() for _ in range(at_once)]
        theirs = [their.fileno() for _, their in pairs]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-c", _COMMAND, *map(str, theirs)]
        self.process = subprocess.Popen(command, env=environment, pass_fds=theirs, stdin=subprocess.DEVNULL)
        for _, their in pairs:
            their.close()
        self._free: SimpleQueue[Connection] = SimpleQueue()
        self._known: set[int] = set()
        self._unwanted: SimpleQueue[int] = SimpleQueue()
        ours = [own for own, _ in pairs]
        with contextlib.suppress(ConnectionError):  # the first request will notice
            ours[0].send(settings)
        for connection in ours:
            self._free.put(connection)
        self.end = weakref.finalize(self, _end, self.process, ours)

    def read(self, memory: SharedMemory, spans: Sequence[Span]) -> list[list[Outcome]]:
        connection = self._free.get()
        try:
            if memory.number not in self._known:
                connection.send(_Mapping(memory.number, len(memory)))
                send_handle(connection, memory.file, self.process.pid)
            connection.send(_Request(memory.number, spans, self._drawn()))
            answer = connection.recv()
        finally:
            self._free.put(connection)
        if memory.number not in self._known:
            self._known.add(memory.number)
            weakref.finalize(memory, self._unwanted.put, memory.number).atexit = False
        if isinstance(answer, Exception):
            raise answer
        found: list[list[Outcome]] = answer
        return found

    def _drawn(self) -> list[int]:
        """Memories that nobody holds any more."""
        numbers = []
        with contextlib.suppress(Empty):
            while True:
                numbers.append(self._unwanted.get_nowait())
        return numbers

    def ended(self) -> int | None:
        """Its exit code, once a connection has broken."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(_STOP_S)
        self.process.kill()
        return self.process.wait()


def _end(process: subprocess.Popen[bytes], connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve() -> None:
    """What the process does: answer requests on the connections whose descriptors are its arguments, until the process
    that started it closes them or ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it, too; who started it says when to end
    connections = [Connection(int(number)) for number in sys.argv[1:]]
    try:
        settings = connections[0].recv()
    except EOFError:
        return
    with ThreadPoolExecutor(settings.threads) as pool:
        served = _Served(open_store(settings.uri, settings.s3), pool)
        threads = [threading.Thread(target=served.answer, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@dataclass(frozen=True)
class _Served:
    """A store, threads that read from it, and by number the memories that they read into."""

    store: ObjectStore
    pool: ThreadPoolExecutor
    memories: dict[int, mmap.mmap] = field(default_factory=dict)

    def answer(self, connection: Connection) -> None:
        """Serve one connection until it is closed."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                request = connection.recv()
                if isinstance(request, _Mapping):
                    file = recv_handle(connection)
                    self.memories.setdefault(request.number, _mapped(file, request.size))
                    os.close(file)
                    continue
                connection.send(self._answered(request))

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
        buffer = memoryview(self.memories[request.number])
        futures = [self.pool.submit(read_span, self.store, span, buffer) for span in request.spans]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def _mapped(file: int, size: int) -> mmap.mmap:
    """Shared memory with all of its pages, instead of a page fault for each when it is written to."""
    return mmap.mmap(file, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
