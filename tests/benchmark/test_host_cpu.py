"""Processor time by process: real ones, and a few whose times are known."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from trio_ray.benchmark.host_cpu import ProcessorTime


def test_a_process_that_computes_is_seen_to() -> None:
    """This one, and another that has begun since."""
    before = ProcessorTime.now(time.monotonic())
    spin = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        after = ProcessorTime.now(time.monotonic())
        other.communicate(b"\n")
    assert os.getpid() in before.used
    assert after.used[other.pid][1] == pytest.approx(0.5, abs=0.2)
    assert sum(after.cores_since(before).values()) * (after.at - before.at) > 0.3


def test_cores_are_added_up_by_name_and_what_has_ended_is_left_out() -> None:
    before = ProcessorTime(2.0, {1: ("weed", 10.0), 2: ("python", 5.0), 3: ("gone", 1.0)})
    after = ProcessorTime(6.0, {1: ("weed", 12.0), 2: ("python", 7.0), 4: ("python", 4.0)})
    assert after.cores_since(before) == {"weed": 0.5, "python": 1.5}
