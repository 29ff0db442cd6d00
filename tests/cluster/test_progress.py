"""What a person sees of a running job."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from trio_ray.cluster.pool import PoolEvent
from trio_ray.cluster.progress import BarProgress, LogProgress, Progress
from trio_ray.precompute.job import JobSummary
from trio_ray.precompute.plan import Task
from trio_ray.precompute.shard_writer import PartReport
from trio_ray.source.sample import Shard

LINE = re.compile(r"6 samples \([1-9]\d*\.\d/s\), 2 bad, shards 2/4, 1 replicas, 0:00:00 left")


def play(progress: Progress) -> None:
    """A job of four shards, one complete before and one finished now, on four replicas, of which one dies, one is ended
    for want of work, and one never loads its model.
    """
    summary = JobSummary("cache", "run", shards=4, shards_before=1)
    task = Task(Shard("name", "s3://corpus/a.tar", 1, "e", "webdataset"), frozenset())
    for number in range(3):
        progress.update(PoolEvent(replica_ready="cpu float32 sdpa", replica=number), summary)
    progress.update(PoolEvent(replica_lost="cannot load", replica=3), summary)
    time.sleep(0.05)
    summary.stored, summary.quarantined = 6, 2
    progress.update(PoolEvent(report=PartReport("name", 0, 6, {"image_empty": 2}, 100, True, 5.0)), summary)
    progress.update(PoolEvent(shard_done=task), summary)
    progress.update(PoolEvent(replica_lost="killed by [signal] 9", replica=0), summary)
    progress.update(PoolEvent(replica_ended=True, replica=2), summary)


def fail(progress: Progress) -> None:
    """A shard is given up."""
    summary = JobSummary("cache", "run", shards=2, shards_before=0, failed={"s3://corpus/b.tar": "it kills"})
    task = Task(Shard("name", "s3://corpus/b.tar", 1, "e", "webdataset"), frozenset())
    progress.update(PoolEvent(shard_failed=(task, 3, "its replica [died]")), summary)


def test_a_log_states_speed_bad_samples_shards_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LogProgress()
    play(progress)
    fail(progress)
    progress.close()
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert "replica ready: cpu float32 sdpa" in lines
    assert "replica lost: killed by [signal] 9" in lines
    counted = [int(found[1]) for line in lines if (found := re.search(r", (\d+) replicas, ", line))]
    assert counted[:6] == [1, 2, 3, 3, 2, 1]
    assert any(LINE.fullmatch(line) for line in lines), lines
    assert "shard failed: s3://corpus/b.tar: its replica [died]" in lines
    assert lines[-1].endswith("1 FAILED, 0:00:00 left")


def test_a_log_stays_short_while_nothing_special_happens(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LogProgress()
    summary = JobSummary("cache", "run", shards=1, shards_before=0)
    for part in range(50):
        progress.update(PoolEvent(report=PartReport("name", part, 1, {}, 1, False, 5.0)), summary)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bar_states_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    progress = BarProgress(Console(file=screen, force_terminal=True, width=140))
    play(progress)
    fail(progress)
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "replica lost: killed by [signal] 9" in text
    assert "shard failed: s3://corpus/b.tar: its replica [died]" in text
    assert re.search(r"\d+\.\d/s\), \d bad, shards \d/\d, \d replicas, .* left", text)
    assert "1 FAILED" in text


def test_the_time_left_is_unknown_before_a_shard_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LogProgress()
    progress.update(PoolEvent(replica_ready="cpu", replica=0), JobSummary("cache", "run", shards=3, shards_before=1))
    assert "shards 1/3, 1 replicas, ? left" in capsys.readouterr().err


def test_a_summary_names_what_is_not_in_the_cache() -> None:
    summary = JobSummary("s3://b/cache", "run", 5, 2, stored=7, quarantined=1, parts=3, bytes=12345, seconds=4.0)
    summary.failed["s3://corpus/x.jsonl rows 0..9"] = "cannot be read"
    text = str(summary)
    assert not summary.ok
    assert "7 samples stored, 1 quarantined, in 3 parts, 12,345 bytes, 4.0 s (2.0 samples/s)" in text
    assert "FAILED s3://corpus/x.jsonl rows 0..9: cannot be read" in text


def test_what_happens_before_the_first_replica_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    log = LogProgress()
    log.say("calibrating [a basis]")
    log.close()
    assert capsys.readouterr().err.splitlines()[0] == "calibrating [a basis]"
    screen = io.StringIO()
    bar = BarProgress(Console(file=screen, force_terminal=True, width=140))
    bar.say("calibrating [a basis]")
    bar.close()
    assert "calibrating [a basis]" in screen.getvalue()
