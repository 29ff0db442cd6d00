"""What a person sees of a long command: a bar on a terminal, a line now and then in a log.

A command goes through phases. Within a phase it reports counts, such as samples, of which one may have a known total.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from trio_ray.errors import TrioRayError
from trio_ray.model.hub import downloads_shown_on

LOG_EVERY_S = 30.0

LOG = logging.getLogger("trio_ray")
"""What the whole package logs."""


@dataclass(frozen=True)
class Phase:
    """What a command is doing.

    Attributes:
        name: such as 'loading', 'answering'.
        unit: the count whose end is known, such as 'shards'.
        total: how many of the unit there are in all; None where nobody knows.
        before: how many of them an earlier run has done, which say nothing about the speed.
        rate_of: the count whose rate is shown.
    """

    name: str
    unit: str = ""
    total: int | None = None
    before: int = 0
    rate_of: str = ""


class Progress(Protocol):
    """Shows what a command is doing."""

    def begin(self, phase: Phase) -> None:
        """A phase begins, and the one before is over."""
        ...

    def update(self, counts: Mapping[str, int], note: str = "", share: float | None = None) -> None:
        """What the phase has done so far, by unit, and a remark that stands behind it.

        `share` of its work is done, from 0 to 1, where more is known of that than the count of the unit says.
        """
        ...

    def say(self, line: str) -> None:
        """A line that stays, for people."""
        ...


class NoProgress:
    """A `Progress` that shows nothing."""

    def begin(self, phase: Phase) -> None:
        """See `Progress`."""

    def update(self, counts: Mapping[str, int], note: str = "", share: float | None = None) -> None:
        """See `Progress`."""

    def say(self, line: str) -> None:
        """See `Progress`."""


@dataclass
class Tally:
    """The state of a phase, in words. Both displays show it."""

    phase: Phase
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    share: float | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """How many of the unit are done, those of earlier runs among them."""
        return self.phase.before + self.counts.get(self.phase.unit, 0)

    def __str__(self) -> str:
        """`running: shards 5/12, 312 samples (41.2/s), 3 bad, 2 replicas, 0:00:30, 0:01:10 left`."""
        elapsed = time.monotonic() - self.began
        parts = [f"{self.phase.unit} {self.done}/{self.phase.total}"] if self.phase.total is not None else []
        for unit, count in self.counts.items():
            rate = f" ({count / elapsed:.1f}/s)" if unit == self.phase.rate_of and elapsed > 0 else ""
            if unit != self.phase.unit or self.phase.total is None:
                parts.append(f"{count} {unit}{rate}")
            else:
                parts[0] += rate
        parts += [self.note] if self.note else []
        parts.append(_clock(elapsed))
        if self.phase.total is not None or self.share is not None:
            parts.append(f"{self._left(elapsed)} left")
        return f"{self.phase.name}: {', '.join(parts)}"

    def _left(self, elapsed: float) -> str:
        if self.share is not None:
            return f"about {_clock((1 - self.share) * elapsed / self.share)}" if self.share > 0 else "?"
        done = self.counts.get(self.phase.unit, 0)
        return _clock(((self.phase.total or 0) - self.done) * elapsed / done) if done else "?"


class TerminalProgress:
    """A bar on a terminal."""

    def __init__(self, console: Console) -> None:
        self._tally = Tally(Phase("starting"))
        self._bars = Bars(BarColumn(), TextColumn("{task.fields[tally]}"), console=console, redirect_stdout=False)
        self._task = self._bars.add_task("", total=None, tally=self._tally)
        self._bars.start()

    def begin(self, phase: Phase) -> None:
        """See `Progress`."""
        self._tally = Tally(phase)
        self._bars.reset(self._task, total=phase.total, completed=phase.before, tally=self._tally)

    def update(self, counts: Mapping[str, int], note: str = "", share: float | None = None) -> None:
        """See `Progress`."""
        self._tally.counts, self._tally.note, self._tally.share = dict(counts), note, share
        if share is None:
            self._bars.update(self._task, completed=self._tally.done)
        else:
            self._bars.update(self._task, total=1.0, completed=share)

    def say(self, line: str) -> None:
        """See `Progress`."""
        self._bars.console.print(escape(line), highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bars.stop()


class LogProgress:
    """Lines on standard error, or wherever `show` puts them: one when a phase begins, and one every `every_s` seconds
    while it lasts.
    """

    def __init__(self, every_s: float = LOG_EVERY_S, show: Callable[[str], None] | None = None) -> None:
        self._show = show
        self._tally: Tally | None = None
        self._every_s = every_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)
        self._thread.start()

    def begin(self, phase: Phase) -> None:
        """See `Progress`."""
        self._tally = Tally(phase)
        self.say(phase.name)

    def update(self, counts: Mapping[str, int], note: str = "", share: float | None = None) -> None:
        """See `Progress`."""
        if self._tally is not None:
            self._tally.counts, self._tally.note, self._tally.share = dict(counts), note, share

    def say(self, line: str) -> None:
        """See `Progress`."""
        if self._show is not None:
            self._show(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write the last state, if there are counts in it, and end."""
        self._closed.set()
        self._thread.join()
        if self._tally is not None and self._tally.counts:
            self.say(str(self._tally))

    def _repeat(self) -> None:
        while not self._closed.wait(self._every_s):
            if self._tally is not None:
                self.say(str(self._tally))


class Both:
    """Shows the same in two displays."""

    def __init__(self, first: Progress, second: Progress) -> None:
        self._displays = (first, second)

    def begin(self, phase: Phase) -> None:
        """See `Progress`."""
        for display in self._displays:
            display.begin(phase)

    def update(self, counts: Mapping[str, int], note: str = "", share: float | None = None) -> None:
        """See `Progress`."""
        for display in self._displays:
            display.update(counts, note, share)

    def say(self, line: str) -> None:
        """See `Progress`."""
        for display in self._displays:
            display.say(line)


class DownloadPhases:
    """Shows downloads of models as phases."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, what: str, size: int) -> None:
        """See `DownloadDisplay`."""
        self._progress.begin(Phase(f"downloading {what}", "MB", max(1, round(size / 1e6)), rate_of="MB"))

    def show(self, done: int) -> None:
        """See `DownloadDisplay`."""
        self._progress.update({"MB": round(done / 1e6)})

    def end(self) -> None:
        """See `DownloadDisplay`."""
        self._progress.begin(Phase("checking the model"))


@contextmanager
def progress_display(log_file: str | None = None) -> Iterator[Progress]:
    """A bar where standard error is a terminal, lines where it is not; the lines go into `log_file` as well.

    Downloads of models are phases of it.
    """
    console = Console(stderr=True)
    display = TerminalProgress(console) if console.is_terminal else LogProgress()
    try:
        with ExitStack() as stack:
            progress: Progress = display
            if log_file is not None:
                progress = Both(display, stack.enter_context(_lines_to(log_file)))
            stack.enter_context(downloads_shown_on(DownloadPhases(progress)))
            yield progress
    finally:
        display.close()


@contextmanager
def _lines_to(path: str) -> Iterator[Progress]:
    """A display that appends its lines to a file with the time of each, beside what the package logs, and at the end
    what stopped it.
    """
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = logging.StreamHandler()  # what Python does by itself only as long as there is no handler
    screen.setLevel(logging.WARNING)
    level = LOG.level
    for one in (handler, screen):
        LOG.addHandler(one)
    LOG.setLevel(logging.INFO)
    lines = LogProgress(show=LOG.info)
    try:
        yield lines
    except TrioRayError as error:
        LOG.info("ended: %s", error)
        raise
    except BaseException as error:
        LOG.info("ended by %s", type(error).__name__, exc_info=not isinstance(error, KeyboardInterrupt))
        raise
    finally:
        lines.close()
        LOG.setLevel(level)
        for one in (handler, screen):
            LOG.removeHandler(one)
        handler.close()


def size_text(size: float) -> str:
    """A number of bytes for people: `1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
