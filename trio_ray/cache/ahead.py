"""Batches that are fetched, and on a GPU restored, while their consumer works on those before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from trio_ray.cache.arena import Arena, Block
from trio_ray.cache.fetched import Fetched, Reader, Wanted, fetch
from trio_ray.kv.target import TargetsInUse
from trio_ray.ordered import ordered_map

BATCHES_AT_ONCE = 3
"""Batches that are fetched side by side: the last requests of one leave threads to the next."""

T = TypeVar("T")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)


class FetchAhead(Iterator[T]):
    """Batches fetched and prepared in threads, in order. Close it.

    Args:
        reader: reads the bytes; closed with this.
        batches: what to read; may come slowly.
        prepare: called in a thread with what was fetched; what it returns is yielded. It, or who consumes that, gives
            the block back.
        ahead: batches that may wait.
        arena: memory for the bytes; closed with this.
    """

    def __init__(
        self,
        reader: Reader,
        batches: Iterable[Wanted],
        prepare: Callable[[Fetched], T],
        ahead: int,
        arena: Arena,
    ) -> None:
        def work(pair: tuple[Wanted, Block | None]) -> T:
            return prepare(fetch(reader, *pair))

        # No thread may know `self`, which nobody could drop then.
        placed = takewhile(lambda pair: pair[1] is not None, ((wanted, arena.take(wanted.size)) for wanted in batches))
        self._finished = ordered_map(work, placed, BATCHES_AT_ONCE, ahead)
        self._arena, self._reader = arena, reader

    def __next__(self) -> T:
        return next(self._finished)

    def ready(self) -> bool:
        """Whether `next` would return, or raise, at once."""
        return self._finished.ready()

    def close(self) -> None:
        """Stop reading."""
        self._arena.close()
        self._finished.close()
        self._reader.close()

    def __del__(self) -> None:
        if hasattr(self, "_reader"):  # else the constructor has raised
            self.close()


class Arriving(Protocol):
    """Batches that come in order, such as `FetchAhead`."""

    def __next__(self) -> Any: ...

    def ready(self) -> bool:
        """Whether `next` would return, or raise, at once."""

    def close(self) -> None:
        """Stop reading."""


class UnderWay(Protocol[T_co]):
    """A batch that a device is at work on."""

    def is_done(self) -> bool:
        """Whether `finish` would return, or raise, at once."""

    def finish(self) -> T_co:
        """Wait for it."""


@dataclass(frozen=True)
class Finished(Generic[T]):
    """A batch that nothing has to be waited for."""

    batch: T

    def is_done(self) -> bool:
        """It is."""
        return True

    def finish(self) -> T:
        """It."""
        return self.batch


@dataclass(frozen=True)
class _Failed:
    """In a batch's place, what was raised instead."""

    error: Exception

    def is_done(self) -> bool:
        return True

    def finish(self) -> NoReturn:
        raise self.error


class RestoreAhead(Iterator[R]):
    """Batches restored from fetched ones, in order; the next one is begun before the host waits for one. Close it.

    Args:
        fetched: what to restore.
        start: begins with a batch. It may raise `TargetsInUse` where another one is under way, and is asked again once
            that has been yielded and the next one is asked for.
    """

    def __init__(self, fetched: Arriving, start: Callable[[Any], UnderWay[R]]) -> None:
        self._fetched, self._start = fetched, start
        self._put_off: list[Any] = []
        self._under_way: UnderWay[R] | None = None

    def begin(self) -> None:
        """Begin to fetch. Nothing is restored on a device before a batch, or whether there is one, is asked for."""
        self._fetched.ready()  # threads that fetch start with the first question

    def __next__(self) -> R:
        mine = self._under_way or self._start(self._take())
        self._under_way = None
        if self._has_come():
            self._begin(another=True)
        return mine.finish()

    def ready(self) -> bool:
        """Whether `next` would return, or raise, at once. A batch that has come is begun by this."""
        if self._under_way is None and self._has_come():
            self._begin(another=False)
        return self._under_way is not None and self._under_way.is_done()

    def close(self) -> None:
        """Stop reading."""
        self._fetched.close()

    def _has_come(self) -> bool:
        return bool(self._put_off) or self._fetched.ready()

    def _take(self) -> Any:
        return self._put_off.pop() if self._put_off else next(self._fetched)

    def _begin(self, another: bool) -> None:
        """Begin with a batch that has come; what is raised comes in its turn. `another`: one is under way already."""
        try:
            batch = self._take()
            try:
                self._under_way = self._start(batch)
            except TargetsInUse:
                if not another:
                    raise
                self._put_off.append(batch)
        except Exception as error:  # StopIteration too
            self._under_way = _Failed(error)
