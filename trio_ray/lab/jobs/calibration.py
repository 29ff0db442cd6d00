"""The codec of benchmarked jobs that leave theirs open (auto), calibrated once for all runs as a job would do it.

A process of its own, as in a job: it gives the GPU back when it ends, and what it compiled disturbs nobody.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from trio_ray.calibration.auto import Uncalibrated, calibrate_for
from trio_ray.calibration.choice import FittedCodec
from trio_ray.config import JobConfig, parse_section
from trio_ray.model.loading import model_fingerprint, model_folder
from trio_ray.model.replica import Replica
from trio_ray.precompute.codec_choice import CodecChoice


def main() -> int:
    """Read the job's configuration and a path from standard input, write the basis there and what it does as JSON."""
    order = json.load(sys.stdin)
    config = parse_section(JobConfig, order["config"])
    torch.set_num_threads(config.replicas.torch_threads)
    started = time.perf_counter()
    made = _calibrate(config)
    record: dict[str, Any] = {"codec": "raw", "why": CodecChoice.of(made).why, "seconds": time.perf_counter() - started}
    if isinstance(made, FittedCodec):
        Path(order["basis"]).write_bytes(made.basis)
        found = made.measured
        record |= {
            "codec": {**made.codec.spec, "basis": order["basis"]},
            "ratio": found.ratio,
            "bytes_per_sample": found.stored,
            "divergence": found.divergence,
            "uncertainty": found.uncertainty,
            "agreement": found.agreement,
            "held_out": found.samples,
        }
    print(json.dumps(record))
    return 0


def _calibrate(config: JobConfig) -> FittedCodec | Uncalibrated:
    if config.cache.scope == "image":
        return Uncalibrated("with scope image the question, by whose answers a basis is chosen, is still to come")
    # Gradients are needed, whatever the replicas multiply in.
    model = config.model.model_copy(update={"matmul": "dtype"})
    replica = Replica.load(model, config.prompt)
    return calibrate_for(config, replica, model_fingerprint(model_folder(model)))


if __name__ == "__main__":
    sys.exit(main())
