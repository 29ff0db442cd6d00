"""What a long command is at, for the person who waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def timed_steps() -> Callable[[str], None]:
    """A function that tells a step on standard error, behind the seconds since now."""
    started = time.monotonic()

    def show(what: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}", file=sys.stderr, flush=True)

    return show
