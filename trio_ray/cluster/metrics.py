"""What a job tells Prometheus, through the metrics agent that Ray runs on every node.

`METRICS` declares them all; the dashboard and the operators' guide (infra/) are held against it. The driver counts what
is committed, each replica reports itself. Ray puts `ray_` in front of every name, and labels with the node and process.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from ray.util.metrics import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from trio_ray.cluster.pool import PoolEvent

OUTPUT = "output"
"""A label of every metric: the cache's URI, so that jobs which share a cluster can be told apart."""

REASON = "reason"
"""A label of the bad samples: why they are in quarantine (`trio_ray.source.sample.Reason`)."""

REFRESH_S = 5.0
"""Ray's agent drops a gauge that was not set again for two report intervals (20 s)."""


@dataclass(frozen=True)
class Metric:
    """One metric. `boundaries` are a histogram's buckets, in `unit`; `labels` come beside `OUTPUT`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str
    boundaries: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus finds it.

        A histogram's `_sum` is left out: Ray forwards buckets, and rebuilds the sum from their middles.
        """
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count")}
        return tuple(f"ray_{self.name}{suffix}" for suffix in suffixes[self.kind])


SAMPLES_STORED = Metric("trio_ray_samples_stored", "counter", "samples", "Samples whose prefix was committed.")
SAMPLES_QUARANTINED = Metric(
    "trio_ray_samples_quarantined",
    "counter",
    "samples",
    "Bad samples that were committed to quarantine, by `reason`.",
    labels=(REASON,),
)
PARTS_COMMITTED = Metric("trio_ray_parts_committed", "counter", "parts", "Parts that this job committed.")
BYTES_WRITTEN = Metric("trio_ray_bytes_written", "counter", "bytes", "Encoded prefixes in those parts.")
DEVICE_SECONDS = Metric(
    "trio_ray_device_seconds", "counter", "seconds", "Time that the replicas' devices took for the parts' samples."
)
SHARDS_COMPLETED = Metric("trio_ray_shards_completed", "counter", "shards", "Input shards that were finished.")
SHARDS_FAILED = Metric(
    "trio_ray_shards_failed", "counter", "shards", "Input shards that cannot be read, or were given up."
)
SHARDS_LEFT = Metric("trio_ray_shards_left", "gauge", "shards", "Input shards that this job still has to do.")
REPLICAS_READY = Metric(
    "trio_ray_replicas_ready",
    "gauge",
    "replicas",
    "1 from each replica with a loaded model: sum them.",
)
REPLICAS_LOST = Metric(
    "trio_ray_replicas_lost", "counter", "replicas", "Replicas that died, were silent too long, or failed to load."
)
REPLICA_LOAD_SECONDS = Metric(
    "trio_ray_replica_load_seconds",
    "histogram",
    "seconds",
    "Time a replica took to load its model.",
    (1, 3, 10, 30, 60, 120, 300, 600),
)
PART_SECONDS = Metric(
    "trio_ray_part_seconds",
    "histogram",
    "seconds",
    "Time from a shard's start, or its part before, to a part's commit.",
    (1, 3, 10, 30, 60, 120, 300, 600, 1800),
)

METRICS = (
    SAMPLES_STORED,
    SAMPLES_QUARANTINED,
    PARTS_COMMITTED,
    BYTES_WRITTEN,
    DEVICE_SECONDS,
    SHARDS_COMPLETED,
    SHARDS_FAILED,
    SHARDS_LEFT,
    REPLICAS_READY,
    REPLICAS_LOST,
    REPLICA_LOAD_SECONDS,
    PART_SECONDS,
)


class JobMetrics:
    """The driver's counts, made from the pool's events. A context, which ends the gauge's refreshing."""

    def __init__(self, output: str, shards_left: int, shards_failed: int) -> None:
        """Args: the cache's URI, the shards to do, and those that failed before any work."""
        self._output = output
        self._counters = {metric.name: _make(metric, output) for metric in METRICS if metric.kind == "counter"}
        self._shards_left = _KeptGauge(SHARDS_LEFT, output, shards_left)
        self._count(SHARDS_FAILED, shards_failed)

    def update(self, event: PoolEvent) -> None:
        """Count an event."""
        if event.report is not None:
            self._count(SAMPLES_STORED, event.report.stored)
            for reason, number in event.report.reasons.items():
                self._count(SAMPLES_QUARANTINED, number, {REASON: reason})
            # A part without samples of ours was committed by a faster attempt, or has none.
            self._count(PARTS_COMMITTED, int(event.report.stored + event.report.quarantined > 0))
            self._count(BYTES_WRITTEN, event.report.bytes)
            self._count(DEVICE_SECONDS, event.report.device_ms / 1e3)
        self._count(SHARDS_COMPLETED, int(event.shard_done is not None))
        self._count(SHARDS_FAILED, int(event.shard_failed is not None))
        self._count(REPLICAS_LOST, int(event.replica_lost is not None))
        if event.shard_done or event.shard_failed:
            self._shards_left.set(self._shards_left.value - 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._shards_left.close()

    def _count(self, metric: Metric, amount: float, labels: dict[str, str] | None = None) -> None:
        if amount:  # Ray refuses to add nothing
            self._counters[metric.name].inc(amount, labels)


class ReplicaMetrics:
    """A replica's own: that it is there, and how long things take it. Ends with its process."""

    def __init__(self, output: str, load_seconds: float) -> None:
        """Args: the cache's URI, and the time that loading took, just now."""
        self._part_seconds = _make(PART_SECONDS, output)
        _make(REPLICA_LOAD_SECONDS, output).observe(load_seconds)
        self._ready = _KeptGauge(REPLICAS_READY, output, 1)

    def part_done(self, seconds: float) -> None:
        """A part came after `seconds`."""
        self._part_seconds.observe(seconds)


class _KeptGauge:
    """A gauge that a thread sets again and again, until `close` or the process's end."""

    def __init__(self, metric: Metric, output: str, value: float) -> None:
        self.value = value
        self._gauge = _make(metric, output)
        self._closed = threading.Event()
        self._gauge.set(value)
        self._thread = threading.Thread(target=self._keep, name=metric.name, daemon=True)
        self._thread.start()

    def set(self, value: float) -> None:
        self.value = value
        self._gauge.set(value)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closed.wait(REFRESH_S):
            self._gauge.set(self.value)


def _make(metric: Metric, output: str) -> Any:
    """The Ray metric, with the cache's label filled in."""
    labels = (OUTPUT, *metric.labels)
    if metric.kind == "histogram":
        made = Histogram(metric.name, metric.description, boundaries=list(metric.boundaries), tag_keys=labels)
    else:
        made = {"counter": Counter, "gauge": Gauge}[metric.kind](metric.name, metric.description, tag_keys=labels)
    made.set_default_tags({OUTPUT: output})
    return made
