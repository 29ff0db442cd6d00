"""Work in threads, results in order, never more than a fixed number ahead."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def interpreter_ends() -> bool:
    """Whether the main thread is done, so that the interpreter only waits for the other threads to end."""
    return not threading.main_thread().is_alive()


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], threads: int, lookahead: int
) -> Generator[R, None, None]:
    """Apply `function` to `items` in threads and yield the results in order.

    The items are drawn in a thread of their own, so that a slow reader, too, runs beside the consumer. At most
    `lookahead` results wait. An exception of the reader or of `function` is raised here, after the results before it.
    Closing the generator stops everything.
    """
    waiting: queue.Queue[Future[R] | BaseException | None] = queue.Queue(maxsize=lookahead)
    stopped = threading.Event()

    def wanted() -> bool:
        return not stopped.is_set() and not interpreter_ends()

    def put(entry: Future[R] | BaseException | None) -> None:
        while wanted():
            with contextlib.suppress(queue.Full):
                waiting.put(entry, timeout=0.1)
                return

    def draw() -> None:
        ending: BaseException | None = None
        try:
            for item in items:
                put(pool.submit(function, item))
                if not wanted():
                    break
        except BaseException as error:
            ending = error
        put(ending)

    with ThreadPoolExecutor(threads) as pool:
        # No daemon: one that is inside of a C++ library when the interpreter ends takes the process down with SIGABRT.
        reader = threading.Thread(target=draw)
        reader.start()
        try:
            while (entry := waiting.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                yield entry.result()
        finally:
            stopped.set()
            reader.join()
            # A generator that is collected when modules are being cleared finds no `queue.Empty` to cancel with; by
            # then nothing waits any more.
            pool.shutdown(cancel_futures=not interpreter_ends())
