"""Another process of this program, at the other end of pipes, and memory that both processes look at.

What such a process does has a Python lock of its own, so it takes nothing from the thread that gives a GPU its work.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

_POPULATE_WRITE = 23
"""`MADV_POPULATE_WRITE` of Linux's madvise(2)."""
PATIENCE_S = 10.0
"""Seconds that a process may take to end before it is killed."""


class SharedMemory:
    """Memory that other processes can be shown: a file without a name, mapped.

    Unlike `/dev/shm` it has no limit of its own in a container.

    Attributes:
        number: tells the memories of the process that made them apart.
        file: descriptor, open as long as this is.
        view: (size,) bytes; they stay valid as long as something refers to them.
    """

    def __init__(self, number: int, size: int, file: int) -> None:
        self._undo = weakref.finalize(self, os.close, file)
        self.number = number
        self.file = file
        self.view = mmap.mmap(file, size)
        _take_pages(self.view)

    @classmethod
    def make(cls, number: int, size: int) -> SharedMemory:
        """New memory, with undefined content."""
        return cls(number, size, new_file(size))

    def __len__(self) -> int:
        return len(self.view)

    def close(self) -> None:
        """Give it back, once nobody here looks at it any more."""
        self._undo()


def _take_pages(view: mmap.mmap) -> None:
    """Take all pages at once, instead of by a page fault for each that is first written to.

    `ctypes` lets go of Python's lock meanwhile, which `mmap.MAP_POPULATE` holds for a tenth of a second and more. Linux
    before 5.14 does not know the request; its pages come one by one.
    """
    start = ctypes.addressof(ctypes.c_char.from_buffer(view))
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(len(view)), _POPULATE_WRITE)


def new_file(size: int) -> int:
    """The descriptor of new memory of so many bytes."""
    file = os.memfd_create("trio_ray")
    try:
        os.ftruncate(file, size)
    except BaseException:
        os.close(file)
        raise
    return file


@dataclass(frozen=True)
class NewMemory:
    """Memory that the other process can look at from now on; the descriptor of its file follows."""

    number: int
    size: int


class ChildProcess:
    """A process that runs a module, with the descriptors of its ends of the pipes as arguments. It is to end when they
    are closed, which they are at the latest when this process ends.

    Args:
        module: its dotted name. What is importable here is so there.
        pipes: how many there are.
        environment: variables that differ from this process's.

    Attributes:
        pid: of the process.
        pipes: this end of each. A pipe is for one thread at a time.
        end: close the pipes and wait for the process's end; also called when nothing refers to this any more.
    """

    def __init__(self, module: str, pipes: int = 1, environment: Mapping[str, str] | None = None) -> None:
        pairs = [Pipe() for _ in range(pipes)]
        theirs = [their.fileno() for _, their in pairs]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *map(str, theirs)],
            stdin=subprocess.DEVNULL,
            pass_fds=theirs,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})},
            start_new_session=True,  # an interrupt from the keyboard is for the process that ends all the others
        )
        for _, their in pairs:
            their.close()
        self.pid = self._process.pid
        self.pipes = tuple(own for own, _ in pairs)
        self.end = weakref.finalize(self, _end, self._process, self.pipes)
        self._shown: set[int] = set()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """What it ended with; negative for a signal."""
        return self._process.returncode

    def kill(self) -> None:
        """End it at once. The pipes stay open for those who still wait at them."""
        self._process.kill()
        self._process.wait()

    def show(self, pipe: Connection, memory: SharedMemory) -> bool:
        """Make sure that the process at the other end can look at this memory; whether it could not before.

        Raises:
            OSError: the process has ended.
        """
        if memory.number in self._shown:
            return False
        pipe.send(NewMemory(memory.number, len(memory)))
        send_handle(pipe, memory.file, self.pid)
        self._shown.add(memory.number)
        return True


def _end(process: subprocess.Popen[bytes], pipes: Sequence[Connection]) -> None:
    for pipe in pipes:
        pipe.close()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def given_pipes() -> tuple[Connection, ...]:
    """The ends of the pipes that a child process was given."""
    return tuple(Connection(int(number)) for number in sys.argv[1:])


def receive(pipe: Connection, mapped: Callable[[int, int, int], SharedMemory] = SharedMemory) -> Any:
    """The next message in a child process; instead of `NewMemory` the memory.

    Args:
        pipe: one of its own.
        mapped: makes the memory of a number, a size and a descriptor.

    Raises:
        EOFError, OSError: the other process has closed the pipe, or has ended.
    """
    message = pipe.recv()
    if isinstance(message, NewMemory):
        return mapped(message.number, message.size, recv_handle(pipe))
    return message
