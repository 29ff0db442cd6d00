"""What a whole job's events say of its speed, on made-up events whose rates are known."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from trio_ray.benchmark.job_report import markdown
from trio_ray.benchmark.job_watch import JobWatch
from trio_ray.pipeline.pool import PoolEvent
from trio_ray.pipeline.shard_writer import PartReport

PART = 10
"""Samples, and bytes, of every part here."""


def watch_of(
    *, ready: dict[int, float], parts: dict[int, list[float]], lost: dict[int, float] | None = None
) -> JobWatch:
    """A watch that has seen replicas get ready, commit parts and get lost at these times.

    A device is at batches for half of the time between a replica's parts.
    """
    events = [(at, PoolEvent(replica_ready="cpu", replica=replica)) for replica, at in ready.items()]
    events += [(at, PoolEvent(replica_lost="killed", replica=replica)) for replica, at in (lost or {}).items()]
    for replica, times in parts.items():
        for before, at in pairwise([ready[replica], *times]):
            report = PartReport("shard", 0, PART, {}, PART, False, device_ms=1e3 * (at - before) / 2)
            events.append((at, PoolEvent(report=report, replica=replica)))
    return JobWatch(sorted(events, key=lambda event: event[0]))


def test_the_rate_is_that_of_the_steady_time_alone() -> None:
    """Not while the second replica still loads, and not behind the last part of the first that has no more work."""
    watch = watch_of(ready={0: 1.0, 1: 4.0}, parts={0: [2, 4, 6, 8, 10, 12], 1: [6, 8, 10, 11, 13, 15]})
    found = watch.summary(2)
    assert (found["all_ready_s"], found["seconds"], found["samples"]) == (4, 15, 12 * PART)
    assert (found["steady_s"], found["tail_s"]) == (6, 3)  # from 6, the second replica's first part, to 12
    assert found["samples_per_s"] == pytest.approx(6 * PART / 6)  # three parts of each
    assert found["bytes_per_s"] == found["samples_per_s"]
    assert found["lost"] == 0


def test_busy_is_the_devices_share_of_the_time_between_a_replicas_parts() -> None:
    watch = watch_of(ready={0: 0.0, 1: 0.0}, parts={0: [2, 4, 6], 1: [1, 3, 7]})
    for at, event in watch.events:
        if event.replica == 1 and event.report is not None:
            object.__setattr__(event.report, "device_ms", 1e3 if at == 3 else 4e3)
    found = watch.summary(2)
    # From 2 to 6: replica 0 works 2 s between 2 and 6, replica 1 has but one part there.
    assert found["busy_by_replica"] == [pytest.approx(0.5), None]
    assert found["busy"] == pytest.approx(0.5)


def test_a_replica_that_is_ended_for_want_of_work_is_not_lost_and_begins_the_tail() -> None:
    watch = watch_of(ready={0: 0.0, 1: 0.0}, parts={0: [2, 4], 1: [2, 4, 6, 8]})
    watch.events.append((4.1, PoolEvent(replica_ended=True, replica=0)))
    found = watch.summary(2)
    assert (found["lost"], found["steady_s"], found["tail_s"]) == (0, 2, 4)


def test_a_lost_replica_does_not_end_the_steady_time_and_its_replacement_does_not_begin_it() -> None:
    watch = watch_of(
        ready={0: 1.0, 1: 1.0, 2: 9.0},
        parts={0: [2, 4, 6, 8, 10, 12, 14], 1: [2, 4], 2: [11, 13]},
        lost={1: 5.0},
    )
    found = watch.summary(2)
    assert (found["lost"], found["all_ready_s"]) == (1, 1)
    assert (found["steady_s"], found["tail_s"]) == (11, 1)  # from 2 to 13, where the replacement has no more work
    assert found["samples_per_s"] == pytest.approx(8 * PART / 11)
    assert watch.ready()[2] == 9


def test_a_rate_between_two_times_counts_the_parts_committed_in_it() -> None:
    watch = watch_of(ready={0: 0.0, 1: 0.0}, parts={0: [2, 4, 6], 1: [3, 5]})
    assert watch.rate(2, 5) == pytest.approx(3 * PART / 3)  # at 3, 4 and 5
    assert watch.rate(6, 10) == 0


def test_a_run_too_short_for_a_rate_has_none_and_its_report_says_so() -> None:
    """One part a replica: nothing lies between the first and the last. JSON has no word for what is not a number."""
    found = watch_of(ready={0: 1.0}, parts={0: [3]}).summary(1)
    assert (found["samples_per_s"], found["bytes_per_s"], found["busy"]) == (None, None, None)
    json.dumps(found, allow_nan=False)
    steady = watch_of(ready={0: 1.0}, parts={0: [2, 4, 6]}).summary(1)
    record = {
        "date": "2026-11-22T00:00:00", "machine": {"device": "cpu", "cpus": 2}, "shapes": "tiny", "workload": "pope",
        "bare": {"samples_per_s": [4.0, 5.0, 6.0], "load_s": 1.0},
        "runs": [{"codec": "raw", **found, "times_bare": None}, {"codec": "int4", **steady, "times_bare": 1.0}],
    }  # fmt: skip
    table = markdown(record).splitlines()
    assert "| 1 | raw | 10 | ? | ? | ? | ? | ? | 1.0 | 0.0 |" in table
    assert "| 1 | int4 | 30 | 5.0 | 100.0 % | ? | 50.0 % | 0 | 1.0 | 0.0 |" in table
    assert any(line.startswith("A run without a rate") for line in table)
