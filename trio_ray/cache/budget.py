"""Reading ahead in bounded memory."""

from __future__ import annotations

import threading


class ByteBudget:
    """Bytes that may be on their way or wait at one time. `take` and `give` may come from different threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, size: int) -> bool:
        """Wait until `size` more bytes fit, or nothing else is out; False once the budget is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._taken or self._taken + size <= self._limit)
            self._taken += size
            return not self._closed

    def give(self, size: int) -> None:
        """These bytes are with the consumer."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

    def close(self) -> None:
        """Let whoever waits go, with False."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
