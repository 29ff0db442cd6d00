"""What was read last, kept in memory up to a number of bytes; of threads that want the same, one reads it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key. The ones that were used last stay, up to `limit` bytes, and always the last one.

    Args:
        limit: bytes.
        size: says how many bytes a value takes.
    """

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self._limit = limit
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0
        self._made: dict[K, Future[V]] = {}
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key; `make` is called where there is none, by one thread, and the others wait for it.

        Raises what `make` raises, in all threads that wait.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            future = self._made.get(key)
            mine = future is None
            if future is None:
                future = self._made[key] = Future()
        if not mine:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._made[key]
            future.set_exception(error)
            raise
        self._keep(key, value)
        future.set_result(value)
        return value

    def holds(self, key: K) -> bool:
        """Whether a value is there now."""
        with self._lock:
            return key in self._values

    def put(self, key: K, value: V) -> None:
        """Keep a value that was made together with others."""
        with self._lock:
            known = key in self._values
        if not known:
            self._keep(key, value)

    def _keep(self, key: K, value: V) -> None:
        with self._lock:
            self._made.pop(key, None)
            if key in self._values:
                return
            self._values[key] = value
            self._bytes += self._size(value)
            while self._bytes > self._limit and len(self._values) > 1:
                self._bytes -= self._size(self._values.popitem(last=False)[1])
