"""The rates of one replica that holds its samples in memory and stores nothing; a whole job is compared with them.

Once with keys and values dropped on the device, once coded as the job does it and copied to the host, in turns. A
process of its own, which gives the GPU back when it ends.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from trio_ray.config import JobConfig, codec_spec, parse_section
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.registry import make_codec
from trio_ray.lab.prefill.pruned import Pruned
from trio_ray.lab.prefill.rounds import run_rounds
from trio_ray.lab.workload import make_workload
from trio_ray.model.replica import Replica
from trio_ray.store.inputs import StoreOpener

ROUNDS = 3


def main() -> int:
    """Read an order from standard input, write the rates as JSON.

    The order holds the job's configuration, the workload's name and size, and whether to code as well: then the
    configuration names the codec, if the job stores keys and values.
    """
    order = json.load(sys.stdin)
    config = parse_section(JobConfig, order["config"])
    torch.set_num_threads(config.replicas.torch_threads)
    started = time.perf_counter()
    replica = Replica.load(config.model, config.prompt)
    load_s = time.perf_counter() - started
    samples = make_workload(replica, order["workload"], order["samples"]).samples
    method = config.method.build(replica.decoder.depth)
    contestants = {"samples_per_s": Pruned(replica, samples, config.pipeline.batch_rows, method)}
    if order["coding"]:
        contestants["coding_samples_per_s"] = Pruned(
            replica, samples, config.pipeline.batch_rows, method, _codec(config), config.cache
        )
    timings = run_rounds(contestants, ROUNDS, replica.device, lambda: 0.0)
    rates = {name: [len(samples) / seconds for seconds in timings.seconds[name]] for name in contestants}
    peak_bytes = max((peak for peak in timings.peak_bytes.values() if peak is not None), default=None)
    print(json.dumps({**rates, "load_s": load_s, "peak_bytes": peak_bytes}))
    return 0


def _codec(config: JobConfig) -> Codec | None:
    return make_codec(codec_spec(config.cache), StoreOpener(config.s3).read) if config.cache.names_codec else None


if __name__ == "__main__":
    sys.exit(main())
