"""What a person sees of a running job: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from trio_ray.cluster.pool import PoolEvent

if TYPE_CHECKING:
    from trio_ray.precompute.job import JobSummary

LOG_EVERY_S = 10.0


class Progress(Protocol):
    """Told of every event, with the summary so far, and of what happens before the first."""

    def say(self, what: str) -> None:
        """A line for people."""
        ...

    def update(self, event: PoolEvent, summary: JobSummary) -> None:
        """An event happened."""
        ...


class Tally:
    """Counts shards and words the state of a job; both displays share it."""

    def __init__(self) -> None:
        self.finished = 0
        self._ready: set[int | None] = set()
        self._began: float | None = None

    def note(self, event: PoolEvent) -> None:
        """Count an event."""
        if event.replica_ready:
            self._ready.add(event.replica)
            self._began = self._began or time.monotonic()
        if event.replica_lost or event.replica_ended:
            self._ready.discard(event.replica)  # one that never loaded its model was not counted
        self.finished += bool(event.shard_done or event.shard_failed)

    def describe(self, summary: JobSummary) -> str:
        """`312 samples (41.2/s), 3 bad, shards 5/12, 2 replicas, 0:01:10 left`."""
        seen = summary.stored + summary.quarantined
        elapsed = time.monotonic() - self._began if self._began else 0.0
        rate = seen / elapsed if elapsed > 0 else 0.0
        done = summary.shards_before + self.finished
        text = (
            f"{summary.stored} samples ({rate:.1f}/s), {summary.quarantined} bad, shards {done}/{summary.shards}, "
            f"{len(self._ready)} replicas"
        )
        if summary.failed:
            text += f", {len(summary.failed)} FAILED"
        return text + f", {self._left(summary, elapsed)} left"

    def _left(self, summary: JobSummary, elapsed: float) -> str:
        todo = summary.shards - summary.shards_before - self.finished
        if not self.finished or not elapsed:
            return "?"
        seconds = int(todo * elapsed / self.finished)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class BarProgress:
    """A bar on a terminal."""

    def __init__(self, console: Console) -> None:
        self._tally = Tally()
        self._bars = Bars(BarColumn(), TextColumn("{task.description}"), console=console, transient=False)
        self._task = self._bars.add_task("starting replicas", total=None)
        self._bars.start()

    def say(self, what: str) -> None:
        """See `Progress`."""
        self._bars.console.print(escape(what), highlight=False)

    def update(self, event: PoolEvent, summary: JobSummary) -> None:
        """See `Progress`."""
        self._tally.note(event)
        if event.replica_lost:
            self._bars.console.print(f"[yellow]replica lost:[/yellow] {escape(event.replica_lost)}", highlight=False)
        if event.shard_failed:
            failure = f"{event.shard_failed[0].shard.uri}: {event.shard_failed[2]}"
            self._bars.console.print(f"[red]shard failed:[/red] {escape(failure)}", highlight=False)
        done = summary.shards_before + self._tally.finished
        self._bars.update(
            self._task,
            description=self._tally.describe(summary),
            completed=done,
            total=max(1, summary.shards),
        )

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bars.stop()


class LogProgress:
    """A line every few seconds, for logs that are no terminal."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._last = 0.0

    def say(self, what: str) -> None:
        """See `Progress`."""
        print(what, file=sys.stderr, flush=True)

    def update(self, event: PoolEvent, summary: JobSummary) -> None:
        """See `Progress`."""
        self._tally.note(event)
        loud = event.replica_ready or event.replica_lost or event.replica_ended or event.shard_failed
        if event.replica_ready:
            print(f"replica ready: {event.replica_ready}", file=sys.stderr, flush=True)
        if event.replica_lost:
            print(f"replica lost: {event.replica_lost}", file=sys.stderr, flush=True)
        if event.shard_failed:
            print(
                f"shard failed: {event.shard_failed[0].shard.uri}: {event.shard_failed[2]}",
                file=sys.stderr,
                flush=True,
            )
        if loud or time.monotonic() - self._last > LOG_EVERY_S:
            self._last = time.monotonic()
            print(self._tally.describe(summary), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to clean up."""


def make_progress() -> BarProgress | LogProgress:
    """A bar where standard error is a terminal, lines where it is not."""
    console = Console(stderr=True)
    return BarProgress(console) if console.is_terminal else LogProgress()
