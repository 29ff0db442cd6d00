"""What a process is writing to its store at this moment, in memory that outlives it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from trio_ray.store.layout import CATALOG, parse_commit_name, parse_data_name
from trio_ray.store.local import LocalStore
from trio_ray.store.objects import ObjectWriter
from trio_ray.store.s3 import S3Store

_WIDTH = 32
_PLACES = 2
"""One for what lies in the catalog, which a thread of its own writes, and one for everything else."""


class Moments:
    """Made by a process that forks; a child writes in `watched`, and the parent reads `data` and `catalog`."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _WIDTH * _PLACES)

    @property
    def data(self) -> str:
        """The kind of object outside the catalog that is being written; '' if none is."""
        return self._read(0)

    @property
    def catalog(self) -> str:
        """The kind of object in the catalog that is being written; '' if none is."""
        return self._read(1)

    def clear(self) -> None:
        """Nothing is being written."""
        self._memory[:] = bytes(_WIDTH * _PLACES)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note what all stores of this process write."""
        with ExitStack() as stack:
            for store in (LocalStore, S3Store):
                for method in ("put", "create"):
                    stack.enter_context(patch.object(store, method, self._noting(getattr(store, method))))
                stack.enter_context(patch.object(store, "writer", self._noting_writer(store.writer)))
            yield

    def _noting(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def write(store: Any, name: str, *arguments: Any) -> Any:
            self._note(name, _kind_of(name))
            try:
                return plain(store, name, *arguments)
            finally:
                self._note(name, "")

        return write

    def _noting_writer(self, plain: Callable[..., ObjectWriter]) -> Callable[..., ObjectWriter]:
        def open_writer(store: Any, name: str) -> ObjectWriter:
            self._note(name, _kind_of(name))
            writer = plain(store, name)
            close = writer.close

            def noting_close() -> None:
                close()
                self._note(name, "")

            writer.close = noting_close  # type: ignore[method-assign]
            return writer

        return open_writer

    def _note(self, name: str, kind: str) -> None:
        place = _WIDTH * name.startswith(CATALOG)
        self._memory[place : place + _WIDTH] = kind.encode()[:_WIDTH].ljust(_WIDTH, b"\0")

    def _read(self, place: int) -> str:
        return self._memory[place * _WIDTH : (place + 1) * _WIDTH].rstrip(b"\0").decode()


def _kind_of(name: str) -> str:
    """A word for what an object is: `tar`, `record`, `segments`, `keys`, ..."""
    if data := parse_data_name(name):
        return data.kind
    if parse_commit_name(name):
        return "record"
    word = name.removeprefix(CATALOG)
    return "".join(sign if sign.isalpha() else " " for sign in word).split(" ")[0] or "other"
