"""What a precompute job tells Prometheus.

`METRICS` declares all metrics; a test holds the dashboard and the operators' guide (infra/) against it. The driver
counts what is committed, and each replica reports itself.
"""

from __future__ import annotations

from typing import Self

from trio_ray.cluster.events import ActorLost, PoolEvent, Report, WorkDone, WorkFailed
from trio_ray.cluster.metrics import KeptGauge, Metric, make_metric
from trio_ray.precompute.plan import Task
from trio_ray.precompute.shard_writer import PartReport

REASON = "reason"
"""A label of the bad samples: why they are in quarantine (`trio_ray.source.sample.Reason`)."""

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
    """The driver's counts, made from the events of the pool. A context: its end stops the gauge."""

    def __init__(self, output: str, shards_left: int, shards_failed: int) -> None:
        """Args: the URI of the cache, the shards to do, and those that failed before any work."""
        self._output = output
        self._counters = {metric.name: make_metric(metric, output) for metric in METRICS if metric.kind == "counter"}
        self._shards_left = KeptGauge(SHARDS_LEFT, output, shards_left)
        self._count(SHARDS_FAILED, shards_failed)

    def update(self, event: PoolEvent[Task]) -> None:
        """Count an event."""
        if isinstance(event, Report) and isinstance(event.content, PartReport):
            self._count_part(event.content)
        elif isinstance(event, WorkDone | WorkFailed):
            self._count(SHARDS_COMPLETED if isinstance(event, WorkDone) else SHARDS_FAILED, 1)
            self._shards_left.set(self._shards_left.value - 1)
        elif isinstance(event, ActorLost):
            self._count(REPLICAS_LOST, 1)

    def _count_part(self, part: PartReport) -> None:
        self._count(SAMPLES_STORED, part.stored)
        for reason, number in part.reasons.items():
            self._count(SAMPLES_QUARANTINED, number, {REASON: reason})
        # A part without samples of ours was committed by a faster attempt, or has none.
        self._count(PARTS_COMMITTED, int(part.stored + part.quarantined > 0))
        self._count(BYTES_WRITTEN, part.bytes)
        self._count(DEVICE_SECONDS, part.device_ms / 1e3)

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
        self._part_seconds = make_metric(PART_SECONDS, output)
        make_metric(REPLICA_LOAD_SECONDS, output).observe(load_seconds)
        self._ready = KeptGauge(REPLICAS_READY, output, 1)

    def part_done(self, seconds: float) -> None:
        """A part came after `seconds`."""
        self._part_seconds.observe(seconds)
