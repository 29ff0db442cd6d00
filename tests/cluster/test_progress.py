"""What a person sees of a long command."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from trio_ray.cluster.progress import LogProgress, NoProgress, Phase, Progress, Tally, TerminalProgress

RUNNING = Phase("running", "shards", total=12, before=2, rate_of="samples")
LINE = re.compile(
    r"running: shards 5/12, 312 samples \([1-9]\d*\.\d/s\), 3 bad, 2 replicas, 1 shards FAILED, 0:00:00, 0:00:\d\d left"
)


def play(progress: Progress) -> None:
    """A job of twelve shards, two of which were done before."""
    progress.begin(Phase("calibrating [a basis]"))
    progress.begin(RUNNING)
    progress.say("replica 0 lost: killed by [signal] 9")
    time.sleep(0.05)
    progress.update({"shards": 3, "samples": 312, "bad": 3, "replicas": 2}, "1 shards FAILED")


def test_a_log_names_phases_and_events_and_ends_with_the_counts_the_rate_and_the_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = LogProgress()
    play(progress)
    progress.close()
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[:3] == ["calibrating [a basis]", "running", "replica 0 lost: killed by [signal] 9"]
    assert LINE.fullmatch(lines[3]), lines


def test_a_log_gets_a_line_now_and_then_even_while_nothing_happens(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LogProgress(every_s=0.05)
    progress.begin(Phase("loading"))
    deadline = time.monotonic() + 10
    seen = ""
    while seen.count("loading: 0:00:00") < 2:
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
        seen += capsys.readouterr().err
    progress.close()


def test_a_log_stays_short_however_often_the_counts_change(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LogProgress()
    progress.begin(RUNNING)
    for number in range(1000):
        progress.update({"samples": number})
    progress.close()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_terminal_shows_the_same() -> None:
    screen = io.StringIO()
    progress = TerminalProgress(Console(file=screen, force_terminal=True, width=160))
    play(progress)
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "replica 0 lost: killed by [signal] 9" in text
    assert LINE.search(text), text


def test_the_time_left_is_unknown_until_something_is_done() -> None:
    assert str(Tally(RUNNING)).endswith("? left")
    assert "left" not in str(Tally(Phase("loading")))


def test_nothing_is_shown_where_nobody_wants_to_see(capsys: pytest.CaptureFixture[str]) -> None:
    play(NoProgress())
    assert capsys.readouterr() == ("", "")
