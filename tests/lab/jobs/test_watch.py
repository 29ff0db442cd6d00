"""What a whole job's events say of its speed, on made-up events whose rates are known."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from trio_ray.cluster.events import ActorEnded, ActorLost, ActorReady, PoolEvent, Report
from trio_ray.lab.jobs.report import study
from trio_ray.lab.jobs.watch import JobWatch
from trio_ray.precompute.plan import Task
from trio_ray.precompute.shard_writer import PartReport
from trio_ray.source.sample import Shard

TASK = Task(Shard("shard", "s3://corpus/a.tar", 1, "e", "webdataset"), frozenset())

PART = 10
"""Samples, and bytes, of every part here."""


def watch_of(
    *, ready: dict[int, float], parts: dict[int, list[float]], lost: dict[int, float] | None = None
) -> JobWatch:
    """A watch that has seen replicas get ready, commit parts and get lost at these times.

    A device is at batches for half of the time between a replica's parts.
    """
    events: list[tuple[float, PoolEvent[Task]]] = [(at, ActorReady(replica, "cpu")) for replica, at in ready.items()]
    events += [(at, ActorLost(replica, "killed")) for replica, at in (lost or {}).items()]
    for replica, times in parts.items():
        for before, at in pairwise([ready[replica], *times]):
            report = PartReport("shard", 0, PART, {}, PART, False, device_ms=1e3 * (at - before) / 2)
            events.append((at, Report(replica, TASK, report)))
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
        if isinstance(event, Report) and event.actor == 1:
            object.__setattr__(event.content, "device_ms", 1e3 if at == 3 else 4e3)
    found = watch.summary(2)
    # From 2 to 6: replica 0 works 2 s between 2 and 6, replica 1 has but one part there.
    assert found["busy_by_replica"] == [pytest.approx(0.5), None]
    assert found["busy"] == pytest.approx(0.5)


def test_a_replica_that_is_ended_for_want_of_work_is_not_lost_and_begins_the_tail() -> None:
    watch = watch_of(ready={0: 0.0, 1: 0.0}, parts={0: [2, 4], 1: [2, 4, 6, 8]})
    watch.events.append((4.1, ActorEnded(0)))
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


def test_a_sample_costs_what_the_steady_time_says() -> None:
    """Of bytes, and of the device's time: half of two seconds for every part."""
    found = watch_of(ready={0: 0.0}, parts={0: [9, 11, 13, 15]}).summary(1)
    assert (found["parts"], found["bytes_per_sample"]) == (4, 1)
    assert found["device_ms_per_sample"] == pytest.approx(1000 / PART)


def test_a_run_too_short_for_a_rate_has_none_and_its_report_says_so() -> None:
    """One part a replica: nothing lies between the first and the last. JSON has no word for what is not a number."""
    found = watch_of(ready={0: 1.0}, parts={0: [3]}).summary(1)
    assert (found["samples_per_s"], found["bytes_per_s"], found["busy"]) == (None, None, None)
    json.dumps(found, allow_nan=False)
    steady = watch_of(ready={0: 1.0}, parts={0: [2, 4, 6]}).summary(1)
    table = report(
        {"codec": "raw", **found, "times_bare": None, "times_bare_coding": None},
        {"codec": "int4", **steady, "times_bare": 1.0, "times_bare_coding": 1.25},
    )
    assert "| 1 | raw | 10 | - | - | - | - | - | - | - | - | 1.0 | 3.0 | 0.0 |" in table
    assert "| 1 | int4 | 30 | 5.0 | - | 100.0 % | 125.0 % | 50.0 % | 100.0 | 0 | 0 | 1.0 | 2.0 | 0.0 |" in table
    assert any(line.startswith("A run without a rate") for line in table)


def report(*runs: dict[str, Any], **beside: Any) -> list[str]:
    """Lines of a report on these runs."""
    record = {
        "date": "2026-11-22T00:00:00", "machine": {"device": "cpu", "cpus": 2}, "shapes": "tiny", "workload": "pope",
        "bare": {"samples_per_s": [4.0, 5.0, 6.0], "coding_samples_per_s": [3.0, 4.0, 5.0], "load_s": 1.0},
        "runs": list(runs), **beside,
    }  # fmt: skip
    return study(record).text.splitlines()


def test_what_is_known_before_the_first_run_is_reported() -> None:
    where, bare = report()
    assert where == "tiny, workload pope, on cpu with 2 CPUs, 2026-11-22."
    assert bare == "Bare replica: 5.0 samples/s, 4.0 with coding and the copy to the host; its model loads in 1.0 s."


def test_what_failed_is_reported_beside_what_did_not() -> None:
    good = watch_of(ready={0: 1.0}, parts={0: [2, 4, 6]}).summary(1)
    lines = report(
        {"replicas": 4, "codec": "auto", "failed": "no room"},
        {"codec": "int4", **good, "times_bare": 1.0, "times_bare_coding": None},
    )
    assert "4 replicas, codec auto: FAILED, no room" in lines
    assert any(line.startswith("| 1 | int4 | 30 | 5.0 |") for line in lines)
