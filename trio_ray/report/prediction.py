"""What an estimate said of a cache, beside what it became."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trio_ray.errors import ConfigError
from trio_ray.report.timeline import Timeline
from trio_ray.store.totals import Totals


@dataclass(frozen=True)
class Predicted:
    """Numbers of a file that `trio-ray estimate --json` wrote.

    Attributes:
        samples: that would be stored.
        bytes_per_sample, total_bytes, parts: of the whole cache.
        device_s: of all replicas together, seconds.
        wall_s: from begin to end, seconds, on so many `replicas`.
    """

    samples: int
    bytes_per_sample: float
    total_bytes: int
    parts: int
    device_s: float
    wall_s: float
    replicas: int


@dataclass(frozen=True)
class Comparison:
    """A predicted number and the one that came true. `kind` says how they are written."""

    name: str
    kind: str
    predicted: float
    actual: float

    @property
    def ratio(self) -> float | None:
        """Actual by predicted."""
        return self.actual / self.predicted if self.predicted else None


def read_prediction(path: str) -> Predicted:
    """Read an estimate's file. Raises `ConfigError` that names the option where it is none."""
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
        job = tree["job"]
        return Predicted(
            samples=int(tree["corpus"]["stored_samples"]),
            bytes_per_sample=float(job["bytes_per_sample"]),
            total_bytes=int(job["total_bytes"]),
            parts=int(job["parts"]),
            device_s=3600 * float(job["gpu_hours"]),
            wall_s=float(job["wall_s"]),
            replicas=int(job["replicas"]),
        )
    except (OSError, ValueError) as error:
        raise ConfigError("--estimate", f"{path} cannot be read as JSON: {error}") from None
    except (KeyError, TypeError) as error:
        raise ConfigError("--estimate", f"{path} was not written by `trio-ray estimate --json`: no {error}") from None


def compared(predicted: Predicted | None, totals: Totals, work: Timeline | None) -> list[Comparison]:
    """The numbers side by side; none where there is no estimate or nothing was stored."""
    if predicted is None or work is None or not totals.stored:
        return []
    return [
        Comparison("samples stored", "count", predicted.samples, totals.stored),
        Comparison("bytes a sample", "bytes", predicted.bytes_per_sample, totals.file_bytes / totals.stored),
        Comparison("bytes in all", "bytes", predicted.total_bytes, totals.file_bytes),
        Comparison("parts", "count", predicted.parts, totals.parts),
        Comparison("time of all devices", "time", predicted.device_s, totals.device_s),
        Comparison("time of work", "time", predicted.wall_s, work.seconds),
        Comparison("devices", "count", predicted.replicas, len(work.replicas)),
    ]
