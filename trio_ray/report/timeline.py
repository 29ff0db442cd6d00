"""How a cache came to be: samples a second and the devices' busy time over time, from the commit records alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from trio_ray.store.commits import CommitRecord

BINS = 60
IDLE = 0.02
"""Times without any work that are longer than this share of the whole are cut out."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Replica:
    """What a device has done.

    Attributes:
        name: host and GPU, or host and process.
        parts, samples: that it made.
        device_s: time that it was busy, seconds.
        present_s: time between the begin and the end of its parts, seconds.
        rate: (bins,) samples/s.
        busy: (bins,) share of time, from 0 to 1.
    """

    name: str
    parts: int
    samples: int
    device_s: float
    present_s: float
    rate: Floats
    busy: Floats

    @property
    def busy_share(self) -> float:
        """Busy time as a share of the time that it was there."""
        return min(1.0, self.device_s / self.present_s) if self.present_s else 0.0


@dataclass(frozen=True)
class Timeline:
    """The work on a cache over time.

    Attributes:
        edges: (bins + 1,) seconds of work since the first part began; idle times are cut out.
        breaks: places where they were, and their lengths, both in seconds.
        replicas: the devices, the one that made most samples first.
        runs: how many jobs had a share in it.
    """

    edges: Floats
    breaks: list[tuple[float, float]]
    replicas: list[Replica]
    runs: int

    @property
    def seconds(self) -> float:
        """Time in which at least one device worked on a part."""
        return float(self.edges[-1])


def timeline(commits: Iterable[CommitRecord], bins: int = BINS) -> Timeline | None:
    """The timeline of these parts; None where there are none with samples.

    A part's samples and busy time are spread evenly over the time from its begin to its end.
    """
    parts: dict[str, list[tuple[float, float, int, float]]] = defaultdict(list)
    runs = set[str]()
    for commit in commits:
        runs.add(commit.run.run_id)
        start, stop = (datetime.fromisoformat(text).timestamp() for text in (commit.run.started, commit.run.finished))
        if commit.stored:
            parts[commit.replica].append((start, max(stop, start + 1e-3), commit.stored, commit.statistics.device_s))
    if not parts:
        return None
    clock = _WorkClock([part[:2] for own in parts.values() for part in own])
    edges = np.linspace(0.0, clock.seconds, bins + 1)
    replicas = [_replica(name, own, clock, edges) for name, own in parts.items()]
    replicas.sort(key=lambda replica: (-replica.samples, replica.name))
    return Timeline(edges, clock.breaks, replicas, len(runs))


def together(replicas: Sequence[Replica], most: int) -> dict[str, Floats]:
    """The rates of at most `most` replicas by name; those that made the least are added up as others."""
    if len(replicas) <= most:
        return {replica.name: replica.rate for replica in replicas}
    shown = {replica.name: replica.rate for replica in replicas[: most - 1]}
    rest = replicas[most - 1 :]
    return {**shown, f"{len(rest)} others": np.sum([replica.rate for replica in rest], axis=0)}


def _replica(name: str, parts: list[tuple[float, float, int, float]], clock: _WorkClock, edges: Floats) -> Replica:
    rate, busy, width = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1), edges[1] - edges[0]
    for start, stop, samples, device_s in parts:
        left, right = clock.at(start), clock.at(stop)
        share = np.clip(np.minimum(edges[1:], right) - np.maximum(edges[:-1], left), 0, None) / max(right - left, 1e-9)
        rate += samples * share / width
        busy += device_s * share / width
    present = _length(_merged([part[:2] for part in parts]))
    samples, device = sum(part[2] for part in parts), sum(part[3] for part in parts)
    return Replica(name, len(parts), samples, device, present, rate, np.clip(busy, 0, 1))


class _WorkClock:
    """From moments to seconds of work: stands still while no part is being made for long."""

    def __init__(self, spans: list[tuple[float, float]]) -> None:
        merged = _merged(spans)
        longest = IDLE * _length(merged)
        self._starts, self._work, self.breaks = [merged[0][0]], [0.0], list[tuple[float, float]]()
        at = 0.0
        for (start, stop), following in zip(merged, [*merged[1:], None], strict=True):
            at += stop - start
            if following is None:
                break
            idle = following[0] - stop
            if idle > longest:
                self.breaks.append((at, idle))
                self._starts += [stop, following[0]]
                self._work += [at, at]
            else:
                at += idle
        self._starts.append(merged[-1][1])
        self._work.append(at)
        self.seconds = max(at, 1e-3)

    def at(self, moment: float) -> float:
        return float(np.interp(moment, self._starts, self._work))


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _length(spans: list[tuple[float, float]]) -> float:
    return sum(stop - start for start, stop in spans)
