"""The rate of one replica that has its samples in memory already and stores nothing: what a whole job is held against.

A process of its own, which gives the GPU back when it ends.
"""

from __future__ import annotations

import json
import sys
import time

from trio_ray.benchmark.pruned import Pruned
from trio_ray.benchmark.rounds import run_rounds
from trio_ray.benchmark.workload import make_workload
from trio_ray.config import JobConfig, parse_section
from trio_ray.model.replica import Replica, make_schedule, make_selector

ROUNDS = 3


def main() -> int:
    """Read the job's configuration and the workload's name and size from standard input, write the rates as JSON."""
    order = json.load(sys.stdin)
    config = parse_section(JobConfig, order["config"])
    started = time.perf_counter()
    replica = Replica.load(config.model, config.prompt)
    load_s = time.perf_counter() - started
    samples = make_workload(replica, order["workload"], order["samples"]).samples
    schedule = make_schedule(config.method, replica.decoder.depth)
    contestant = Pruned(replica, samples, config.pipeline.batch_rows, schedule, make_selector(config.method))
    timings = run_rounds({"bare": contestant}, ROUNDS, replica.device, lambda: 0.0)
    rates = [len(samples) / seconds for seconds in timings.seconds["bare"]]
    peak_bytes = timings.peak_bytes["bare"]
    print(json.dumps({"samples_per_s": rates, "load_s": load_s, "peak_bytes": peak_bytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
