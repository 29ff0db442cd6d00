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

    def put(entry: Future[R] | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(entry, timeout=0.1)
                return

    def draw() -> None:
        ending: BaseException | None = None
        try:
            for item in items:
                put(pool.submit(function, item))
                if stopped.is_set():
                    break
        except BaseException as error:
            ending = error
        put(ending)

    with ThreadPoolExecutor(threads) as pool:
        reader = threading.Thread(target=draw, daemon=True)
        reader.start()
        try:
            while (entry := waiting.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                yield entry.result()
        finally:
            stopped.set()
            reader.join()
            pool.shutdown(cancel_futures=True)
