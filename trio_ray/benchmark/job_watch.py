"""What a job's events say of its speed."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from trio_ray.pipeline.job import JobSummary
from trio_ray.pipeline.pool import PoolEvent


@dataclass
class JobWatch:
    """A `Progress` that remembers. Times are seconds since it was made."""

    events: list[tuple[float, PoolEvent]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def update(self, event: PoolEvent, summary: JobSummary) -> None:
        """See `Progress`."""
        self.events.append((time.monotonic() - self._began, event))

    def ready(self) -> list[float]:
        """When each replica had loaded its model."""
        return [at for at, event in self.events if event.replica_ready]

    def summary(self, replicas: int) -> dict[str, Any]:
        """Rates and shares of a job that ran on `replicas` replicas to its end.

        Steady means from when the last of the first replicas has committed its first part until the first replica has
        no more work: before lies loading and compiling, behind it the tail.
        """
        parts: dict[int, list[tuple[float, PoolEvent]]] = defaultdict(list)
        for at, event in self.events:
            if event.report is not None and event.replica is not None:
                parts[event.replica].append((at, event))
        ready = self.ready()[:replicas]
        begin = max(of_one[0][0] for of_one in parts.values())
        last = {replica: of_one[-1][0] for replica, of_one in parts.items()}
        first_idle, end = min(last.values()), max(last.values())
        inside = [event for of_one in parts.values() for at, event in of_one if begin < at <= first_idle]
        seconds = first_idle - begin
        stored = sum(event.report.stored for event in inside if event.report)
        written = sum(event.report.bytes for event in inside if event.report)
        return {
            "replicas": replicas,
            "samples": sum(event.report.stored for _, event in self.events if event.report),
            "seconds": end,
            "all_ready_s": max(ready),
            "samples_per_s": stored / seconds if seconds > 0 else 0.0,
            "bytes_per_s": written / seconds if seconds > 0 else 0.0,
            "busy": mean(_busy(of_one, begin, first_idle) for of_one in parts.values()),
            "busy_by_replica": [_busy(of_one, begin, first_idle) for of_one in parts.values()],
            "steady_s": seconds,
            "tail_s": end - first_idle,
            "lost": sum(event.replica_lost is not None for _, event in self.events),
        }

    def rate(self, start: float, stop: float) -> float:
        """Samples a second between two times."""
        stored = sum(
            event.report.stored for at, event in self.events if event.report is not None and start < at <= stop
        )
        return stored / (stop - start)


def _busy(events: list[tuple[float, PoolEvent]], begin: float, end: float) -> float:
    """Share of the time between a replica's first part in a window and its last that its device was at batches."""
    inside = [(at, event.report) for at, event in events if event.report is not None and begin <= at <= end]
    if len(inside) < 2:
        return float("nan")
    return sum(report.device_ms for _, report in inside[1:]) / 1e3 / (inside[-1][0] - inside[0][0])
