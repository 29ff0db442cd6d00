"""What a person sees of a long command."""

from __future__ import annotations

import io
import logging
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from trio_ray.cluster.progress import (
    DownloadPhases,
    LogProgress,
    NoProgress,
    Phase,
    Progress,
    Tally,
    TerminalProgress,
    progress_display,
    size_text,
)
from trio_ray.errors import JobFailed

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


def test_a_log_file_gets_the_lines_with_times_and_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.log"

    def job() -> None:
        with progress_display(str(file)) as progress:
            play(progress)
            logging.getLogger("trio_ray.store").warning("the store is slow")
            raise JobFailed("no replica could be started")

    with pytest.raises(JobFailed):
        job()
    text = file.read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO running$", text, re.MULTILINE)
    assert "WARNING the store is slow" in text
    assert "INFO ended: no replica could be started" in text
    assert "Traceback" not in text
    shown = capsys.readouterr().err
    assert "the store is slow" in shown, "a warning is still shown on the screen"
    assert "replica 0 lost: killed by [signal] 9" in shown

    with pytest.raises(ZeroDivisionError), progress_display(str(file)):
        _ = 1 / 0
    assert "Traceback" in file.read_text(), "what no sentence exists for keeps its traceback, in the file"
    assert file.read_text().startswith(text), "a second run is appended"


def test_a_share_tells_the_time_left_where_the_count_does_not() -> None:
    tally = Tally(RUNNING, share=0.25, began=time.monotonic() - 10)
    assert str(tally).endswith("0:00:10, about 0:00:30 left")
    assert str(Tally(Phase("loading"), share=0.0)).endswith("? left")


def test_bytes_are_shown_in_units_of_a_thousand() -> None:
    assert [size_text(size) for size in (12, 1500, 2_340_000, 5e9, 7.25e12)] == [
        "12 bytes", "1.5 kB", "2.3 MB", "5.0 GB", "7.25 TB",
    ]  # fmt: skip


def test_a_download_is_a_phase_that_counts_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    display = LogProgress()
    download = DownloadPhases(display)
    download.begin("owner/model (9 files)", 15_200_000_000)
    download.show(7_600_400_000)
    display.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "downloading owner/model (9 files)"
    assert last.startswith("downloading owner/model (9 files): MB 7600/15200 (")
    assert last.endswith(" left")
