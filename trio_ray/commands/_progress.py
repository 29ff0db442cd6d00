"""What a long command is at, on standard error, for the person who waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def timed_steps() -> Callable[[str], None]:
    """A function that tells a step, behind the seconds since now."""
    started = time.monotonic()

    def show(what: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}", file=sys.stderr, flush=True)

    return show


def counted(what: str, total: int) -> Callable[[int], None]:
    """A function that tells how many of `total` are done, and how long the others will take, in one line."""
    started = time.monotonic()

    def show(done: int) -> None:
        left = (time.monotonic() - started) * (total - done) / done
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} {what}, {left:.0f} s left ", end=end, file=sys.stderr, flush=True)

    return show
