"""What a job's events say of its speed."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from trio_ray.pipeline.job import JobSummary
from trio_ray.pipeline.pool import PoolEvent
from trio_ray.pipeline.shard_writer import PartReport


@dataclass
class JobWatch:
    """A `Progress` that remembers. Times are seconds since it was made."""

    events: list[tuple[float, PoolEvent]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        """See `Progress`."""

    def update(self, event: PoolEvent, summary: JobSummary) -> None:
        """See `Progress`."""
        self.events.append((time.monotonic() - self._began, event))

    def ready(self) -> list[float]:
        """When each replica had loaded its model."""
        return [at for at, event in self.events if event.replica_ready]

    def summary(self, replicas: int) -> dict[str, Any]:
        """Rates and shares of a job that ran on `replicas` replicas to its end.

        Steady means from when the last of the first replicas has committed its first part until the first replica has
        no more work: before lies loading and compiling, behind it the tail. One that was lost on the way had work, and
        one that replaced it is none of the first. What a job is too short for is None.
        """
        parts = self._parts()
        begun = {replica: of_one[0][0] for replica, of_one in parts.items()}
        last = {replica: of_one[-1][0] for replica, of_one in parts.items()}
        lost = {event.replica for _, event in self.events if event.replica_lost}
        begin, end = max(begun[replica] for replica in sorted(begun)[:replicas]), max(last.values())
        first_idle = min((at for replica, at in last.items() if replica not in lost), default=end)
        inside = [report for of_one in parts.values() for at, report in of_one if begin < at <= first_idle]
        seconds = first_idle - begin
        busy = [_busy(of_one, begin, first_idle) for _, of_one in sorted(parts.items())]
        known = [share for share in busy if share is not None]
        return {
            "replicas": replicas,
            "samples": sum(report.stored for of_one in parts.values() for _, report in of_one),
            "seconds": end,
            "all_ready_s": max(self.ready()[:replicas]),
            "samples_per_s": sum(report.stored for report in inside) / seconds if seconds > 0 else None,
            "bytes_per_s": sum(report.bytes for report in inside) / seconds if seconds > 0 else None,
            "busy": mean(known) if known else None,
            "busy_by_replica": busy,
            "steady_s": max(0.0, seconds),
            "tail_s": end - first_idle,
            "lost": sum(event.replica_lost is not None for _, event in self.events),
        }

    def rate(self, start: float, stop: float) -> float:
        """Samples a second between two times."""
        reports = [report for of_one in self._parts().values() for at, report in of_one if start < at <= stop]
        return sum(report.stored for report in reports) / (stop - start)

    def _parts(self) -> dict[int, list[tuple[float, PartReport]]]:
        """What each replica, by its number, has committed, and when."""
        parts: dict[int, list[tuple[float, PartReport]]] = defaultdict(list)
        for at, event in self.events:
            if event.report is not None and event.replica is not None:
                parts[event.replica].append((at, event.report))
        return parts


def _busy(parts: list[tuple[float, PartReport]], begin: float, end: float) -> float | None:
    """Share of the time between a replica's first part in a window and its last that its device was at batches; None
    where it has not two parts there.
    """
    inside = [(at, report) for at, report in parts if begin <= at <= end]
    if len(inside) < 2:
        return None
    return sum(report.device_ms for _, report in inside[1:]) / 1e3 / (inside[-1][0] - inside[0][0])
