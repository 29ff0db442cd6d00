"""What a job's events say of its speed."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from trio_ray.cluster.events import ActorLost, ActorReady, PoolEvent, Report
from trio_ray.precompute.job import JobSummary
from trio_ray.precompute.plan import Task
from trio_ray.precompute.shard_writer import PartReport

PARTS_FOR_A_RATE = 2
"""Of each replica, at the least, behind the recovery of a job that lost one: fewer would be chance."""

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
        """Its length; not above 0 where a job is too short to have any."""
        return self.first_idle - self.begin


@dataclass
class JobWatch:
    """Remembers the events of a job. Times are seconds since it was made. Another thread may ask it meanwhile."""

    events: list[tuple[float, PoolEvent[Task]]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """On the clock of all times here."""
        return time.monotonic() - self._began

    def note(self, event: PoolEvent[Task], summary: JobSummary) -> None:
        """Remember an event. An `Observer`."""
        self.events.append((self.now(), event))

    def begun_s(self, replicas: int) -> float | None:
        """When the last of the first `replicas` replicas had committed its first part; None as long as it has not."""
        begun = {replica: of_one[0][0] for replica, of_one in self._parts().items()}
        return max(begun[replica] for replica in sorted(begun)[:replicas]) if len(begun) >= replicas else None

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

    def recovery(self, replicas: int, killed_s: float) -> dict[str, Any]:
        """What it cost that one of the first `replicas` replicas was killed; None for what did not come, or not for
        long enough.

        How much of the shards in flight was computed twice, events cannot say: what was not committed is not reported.
        They say which shards had parts committed by the lost replica and by others, which ended them.
        """
        parts, steady = self._parts(), self._steady(replicas)
        first = sorted(number for number, _ in self._ready())[:replicas]
        lost = self._lost()
        replaced = next(((n, at) for n, at in self._ready() if n not in first and at > killed_s), None)
        committed = next(iter(parts.get(replaced[0], [])), None) if replaced else None
        back = committed[0] if committed else None
        by = {replica: {report.shard for _, report in of_one} for replica, of_one in parts.items()}
        of_lost = {shard for replica, shards in by.items() if replica in lost for shard in shards}
        of_others = {shard for replica, shards in by.items() if replica not in lost for shard in shards}
        return {
            "killed_s": killed_s,
            "noticed_after_s": next((at - killed_s for at, event in self.events if isinstance(event, ActorLost)), None),
            "replaced_after_s": replaced[1] - killed_s if replaced else None,
            "recovered_after_s": back - killed_s if back is not None else None,
            "samples_per_s_before": self._rate(steady.begin, killed_s, replicas),
            "samples_per_s_after": None if back is None else self._rate(back, steady.first_idle, replicas),
            "shards_taken_over": len(of_lost & of_others),
        }

    def _rate(self, start: float, stop: float, replicas: int) -> float | None:
        """Samples a second between two times; None where too few parts lie there to tell."""
        reports = [r for of_one in self._parts().values() for at, r in of_one if start < at <= stop]
        return sum(r.stored for r in reports) / (stop - start) if len(reports) >= PARTS_FOR_A_RATE * replicas else None

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
        """What each replica, by its number, has committed, and when."""
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
