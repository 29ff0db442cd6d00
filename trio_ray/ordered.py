"""Work in threads, results in order, never more than a fixed number ahead."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Waiting = queue.Queue["Future[R] | BaseException | None"]
"""Results that have not been yielded; what the items raised; None at their end."""


def interpreter_ends() -> bool:
    """Whether the main thread is done, so that the interpreter only waits for the other threads to end."""
    return not threading.main_thread().is_alive()


def map_all(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply `function` to all items in the pool's threads; the results in order.

    What it raises is raised here, of the first item that it was raised for. Nothing is being done any more by then.
    """
    futures = [pool.submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


class OrderedResults(Iterator[R]):
    """What `ordered_map` returns. The work begins when the first result, or whether there is one, is asked for."""

    def __init__(self, results: Generator[Any, None, None], waiting: Waiting[R]) -> None:
        self._results, self._waiting, self._begun = results, waiting, False

    def __next__(self) -> R:
        self._begin()
        result: R = next(self._results)
        return result

    def ready(self) -> bool:
        """Whether `next` would return, or raise, without waiting for work."""
        self._begin()
        with self._waiting.mutex:
            if not self._waiting.queue:
                return False
            entry = self._waiting.queue[0]
        return not isinstance(entry, Future) or entry.done()

    def close(self) -> None:
        """Stop the work, and wait for what is being done."""
        self._results.close()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            next(self._results, None)


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int, lookahead: int) -> OrderedResults[R]:
    """Apply `function` to `items` in threads and yield the results in order.

    The items are drawn in a thread of their own, so that a slow reader, too, runs beside the consumer. At most
    `lookahead` results wait. An exception of the reader or of `function` is raised here, after the results before it.
    Closing the iterator stops everything.
    """
    waiting: Waiting[R] = queue.Queue(maxsize=lookahead)
    return OrderedResults(_results(function, items, threads, waiting), waiting)


def _results(
    function: Callable[[T], R], items: Iterable[T], threads: int, waiting: Waiting[R]
) -> Generator[Any, None, None]:
    """None once the work has begun, and then the results."""
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
            yield None
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
