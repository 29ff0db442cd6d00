"""Metrics for Prometheus, through the agent that Ray runs on every node.

Ray puts `ray_` in front of every name, and adds labels for the node and the process.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

OUTPUT = "output"
"""A label of every metric: the cache's URI, so that jobs which share a cluster can be told apart."""

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


class KeptGauge:
    """A gauge that a thread sets again and again, until `close` or the end of the process."""

    def __init__(self, metric: Metric, output: str, value: float) -> None:
        """Args: the gauge, the URI of the cache, and the first value."""
        self.value = value
        self._gauge = make_metric(metric, output)
        self._closed = threading.Event()
        self._gauge.set(value)
        self._thread = threading.Thread(target=self._keep, name=metric.name, daemon=True)
        self._thread.start()

    def set(self, value: float) -> None:
        """Report another value from now on."""
        self.value = value
        self._gauge.set(value)

    def close(self) -> None:
        """Report it no more."""
        self._closed.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closed.wait(REFRESH_S):
            self._gauge.set(self.value)


def label_text(text: str) -> str:
    """The text of a label: Ray takes ASCII alone, and other characters are written as `\\xfc` or `\\u4e2d`."""
    return text.encode("ascii", "backslashreplace").decode()


def make_metric(metric: Metric, output: str) -> Any:
    """Ray's own metric object, with the label of the cache filled in."""
    labels = (OUTPUT, *metric.labels)
    if metric.kind == "histogram":
        made = Histogram(metric.name, metric.description, boundaries=list(metric.boundaries), tag_keys=labels)
    else:
        made = {"counter": Counter, "gauge": Gauge}[metric.kind](metric.name, metric.description, tag_keys=labels)
    made.set_default_tags({OUTPUT: label_text(output)})
    return made
