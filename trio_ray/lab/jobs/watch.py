"""The speed of a job, as its events show it."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from trio_ray.cluster.events import ActorLost, ActorReady, PoolEvent, Report
from trio_ray.precompute.plan import Task
from trio_ray.precompute.shard_writer import PartReport
from trio_ray.precompute.summary import JobSummary

Parts = dict[int, list[tuple[float, PartReport]]]


@dataclass(frozen=True)
class Steady:
    """From when the last of the first replicas has committed its first part until the first replica has no more work:
    before lies loading and compiling, behind it the tail. Seconds.
    """

    begin: float
    first_idle: float

    @property
    def seconds(self) -> float:
        """Length of the steady time; 0 or less if the job is too short to have one."""
        return self.first_idle - self.begin


@dataclass
class JobWatch:
    """Remembers the events of a job. Times are seconds since it was made. Another thread may ask it meanwhile."""

    events: list[tuple[float, PoolEvent[Task]]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """The current time on the clock that all times here use."""
        return time.monotonic() - self._began

    def note(self, event: PoolEvent[Task], summary: JobSummary) -> None:
        """Remember an event. An `Observer`."""
        self.events.append((self.now(), event))

    def summary(self, replicas: int) -> dict[str, Any]:
        """Rates and shares of a job that ran on `replicas` replicas to its end, in its steady time.

        A replica that was lost on the way had work, and one that replaced it is none of the first. What a job is too
        short for is None.
        """
        parts, steady = self._parts(), self._steady(replicas)
        window = steady.seconds if steady.seconds > 0 else None
        inside = [report for of_one in parts.values() for at, report in of_one if _in(steady, at)]
        samples, size = sum(report.stored for report in inside), sum(report.bytes for report in inside)
        busy = [_busy(of_one, steady) for _, of_one in sorted(parts.items())]
        known = [share for share in busy if share is not None]
        end = self._end()
        return {
            "replicas": replicas,
            "samples": sum(report.stored for of_one in parts.values() for _, report in of_one),
            "parts": sum(len(of_one) for of_one in parts.values()),
            "seconds": end,
            "all_ready_s": max(at for _, at in self._ready()[:replicas]),
            "begun_s": steady.begin,
            "samples_per_s": samples / window if window else None,
            "bytes_per_s": size / window if window else None,
            "bytes_per_sample": size / samples if samples else None,
            "device_ms_per_sample": sum(report.device_ms for report in inside) / samples if samples else None,
            "busy": mean(known) if known else None,
            "busy_by_replica": busy,
            "steady_s": max(0.0, steady.seconds),
            "tail_s": end - steady.first_idle,
            "lost": sum(isinstance(event, ActorLost) for _, event in self.events),
        }

    def _steady(self, replicas: int) -> Steady:
        parts = self._parts()
        begun = [parts[replica][0][0] for replica in sorted(parts)[:replicas]]
        lost = self._lost()
        last = [of_one[-1][0] for replica, of_one in parts.items() if replica not in lost]
        return Steady(max(begun), min(last, default=self._end()))

    def _lost(self) -> set[int]:
        """Numbers of the replicas that were lost."""
        return {event.actor for _, event in self.events if isinstance(event, ActorLost)}

    def _end(self) -> float:
        return max(of_one[-1][0] for of_one in self._parts().values())

    def _ready(self) -> list[tuple[int, float]]:
        """Each replica's number and when it had loaded its model, in the order in which they had."""
        return [(event.actor, at) for at, event in self.events if isinstance(event, ActorReady)]

    def _parts(self) -> Parts:
        """What each replica has committed, and when; by the replica's number."""
        parts: Parts = defaultdict(list)
        for at, event in list(self.events):
            if isinstance(event, Report) and isinstance(event.content, PartReport):
                parts[event.actor].append((at, event.content))
        return dict(parts)


def _in(steady: Steady, at: float) -> bool:
    return steady.begin < at <= steady.first_idle


def _busy(parts: list[tuple[float, PartReport]], steady: Steady) -> float | None:
    """Share of the time between a replica's first part in the steady time and its last that its device was at batches;
    None where it has not two parts there.
    """
    inside = [(at, report) for at, report in parts if steady.begin <= at <= steady.first_idle]
    if len(inside) < 2:
        return None
    return sum(report.device_ms for _, report in inside[1:]) / 1e3 / (inside[-1][0] - inside[0][0])
