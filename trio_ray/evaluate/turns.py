"""One thread at a time, which can see that another one wants its place."""

from __future__ import annotations

from threading import Lock
from types import TracebackType


class Turns:
    """A lock, used as a context manager, that tells its holder when others wait."""

    def __init__(self) -> None:
        self._turn = Lock()
        self._counting = Lock()
        self._waiting = 0

    @property
    def wanted(self) -> bool:
        """Whether a thread waits."""
        return self._waiting > 0

    def __enter__(self) -> None:
        self._count(1)
        try:
            self._turn.acquire()
        finally:
            self._count(-1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._turn.release()

    def _count(self, change: int) -> None:
        with self._counting:
            self._waiting += change
