"""Requests and bytes of an object store, counted where the package asks for them: at the interface of the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from trio_ray.store.local import LocalStore
from trio_ray.store.objects import ObjectInfo
from trio_ray.store.s3 import S3Store

LISTED_AT_ONCE = 1000
"""Names that S3 gives for one request."""


@dataclass
class Requests:
    """What was asked of object stores.

    Attributes:
        names: of the objects that were read, once a request.
        lists: requests that listing took; S3's number, for a folder too.
        writes: objects written or deleted.
        bytes: read.
    """

    names: list[str] = field(default_factory=list)
    lists: int = 0
    writes: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def gets(self) -> int:
        """Requests that read an object or a range of one."""
        return len(self.names)

    @property
    def total(self) -> int:
        """All requests."""
        return self.gets + self.lists + self.writes

    def _read(self, name: str, size: int) -> None:
        with self._lock:
            self.names.append(name)
            self.bytes += size


@contextmanager
def counted_requests() -> Iterator[Requests]:
    """Count what all stores of this process are asked for, in all threads."""
    counted = Requests()
    with ExitStack() as stack:
        for store in (LocalStore, S3Store):
            for name, make in _COUNTED.items():
                stack.enter_context(patch.object(store, name, make(getattr(store, name), counted)))
        # A folder's `put` takes a writer, which is counted.
        stack.enter_context(patch.object(S3Store, "put", _writing(S3Store.put, counted)))
        yield counted


def _reading(plain: Callable[..., bytes], counted: Requests) -> Callable[..., bytes]:
    def read(self: Any, name: str, limit: int | None = None) -> bytes:
        data = plain(self, name, limit)
        counted._read(name, len(data))
        return data

    return read


def _reading_into(plain: Callable[..., None], counted: Requests) -> Callable[..., None]:
    def read_into(self: Any, name: str, offset: int, buffer: memoryview) -> None:
        plain(self, name, offset, buffer)
        counted._read(name, len(buffer))

    return read_into


def _looking(plain: Callable[..., ObjectInfo], counted: Requests) -> Callable[..., ObjectInfo]:
    def stat(self: Any, name: str) -> ObjectInfo:
        counted._read(name, 0)
        return plain(self, name)

    return stat


def _listing(plain: Callable[..., Iterator[ObjectInfo]], counted: Requests) -> Callable[..., Iterator[ObjectInfo]]:
    def listing(self: Any, *arguments: Any) -> Iterator[ObjectInfo]:
        for number, info in enumerate(plain(self, *arguments)):
            if number and number % LISTED_AT_ONCE == 0:
                counted.lists += 1
            yield info

    def counting(self: Any, *arguments: Any) -> Iterator[ObjectInfo]:
        counted.lists += 1
        return listing(self, *arguments)

    return counting


def _writing(plain: Callable[..., Any], counted: Requests) -> Callable[..., Any]:
    def write(self: Any, *arguments: Any) -> Any:
        counted.writes += 1
        return plain(self, *arguments)

    return write


_COUNTED: dict[str, Callable[[Callable[..., Any], Requests], Callable[..., Any]]] = {
    "read": _reading,
    "read_into": _reading_into,
    "stat": _looking,
    "list": _listing,
    "create": _writing,
    "writer": _writing,
    "delete": _writing,
}
