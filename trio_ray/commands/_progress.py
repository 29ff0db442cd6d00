"""The one progress display, as the callbacks that studies and measurements take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trio_ray.cluster.progress import Phase, progress_display


@contextmanager
def shown_steps() -> Iterator[Callable[[str], None]]:
    """A function that shows the step that begins, until the end."""
    with progress_display() as progress:
        yield lambda what: progress.begin(Phase(what))


@contextmanager
def shown_count(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows how many of `total` are done, until the end."""
    with progress_display() as progress:
        progress.begin(Phase("running", what, total, rate_of=what))
        yield lambda done: progress.update({what: done})
