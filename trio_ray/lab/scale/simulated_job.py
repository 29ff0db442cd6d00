"""A whole job on a thousand replicas that are not there: the driver, the pool and every commit are real.

Ray, the hosts, the model and the clock are simulated; a replica takes its time, and then commits real parts of made-up
samples. A process of its own, JSON in, JSON out.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Generator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID

from trio_ray.cluster.actors import WantsMore
from trio_ray.config import JobConfig, load_config
from trio_ray.lab.scale.made_parts import commit_part
from trio_ray.lab.scale.measure import peak_bytes, resident_bytes, start_peak
from trio_ray.lab.scale.simulated_ray import Behaviour, Hosts, SimulatedRay, Wait
from trio_ray.lab.soak.soak import account
from trio_ray.precompute import job, plan
from trio_ray.precompute.job import run_job
from trio_ray.precompute.outlook import ShardAdvanced
from trio_ray.precompute.plan import Task
from trio_ray.precompute.replica_actor import ReplicaSpec
from trio_ray.precompute.rows import shard_input
from trio_ray.precompute.shard_run import NEWS_PER_S, CommittedParts
from trio_ray.precompute.shard_writer import PartReport
from trio_ray.store.objects import ObjectStore, ObjectWriter
from trio_ray.store.opening import open_store

SHARD_PARTS = 4
PART_SAMPLES = 10
MEMBER_BYTES = 500
BAD_OF = 50
"""One sample of so many goes to quarantine."""

STORING_S = 3.0
"""From the last sample of a part until it is committed."""

WRITES = 5
"""Of a part: table, locators, quarantine, tar and record; a replica dies behind any number of them."""


class _Died(BaseException):
    """The replica's process has ended."""


class _DyingStore:
    """A store in the hands of a process that dies behind so many writes."""

    def __init__(self, store: ObjectStore, writes: int) -> None:
        self._store = store
        self._left = writes

    def put(self, name: str, data: bytes) -> None:
        self._spend()
        self._store.put(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._spend()
        return self._store.create(name, data)

    def writer(self, name: str) -> ObjectWriter:
        writer = self._store.writer(name)
        close = writer.close

        def spending_close() -> None:
            self._spend()
            close()

        writer.close = spending_close  # type: ignore[method-assign]
        writer.abort = self._spend  # type: ignore[method-assign]
        return writer

    def delete(self, name: str) -> None:
        raise _Died

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Died


class _SeededIds:
    """Stands in for the module `uuid`."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def uuid4(self) -> UUID:
        return UUID(int=self._dice.getrandbits(128), version=4)


class _Replica:
    """What an actor does with its shards."""

    def __init__(self, spec: ReplicaSpec, part_s: float) -> None:
        self._spec = spec
        self._store = open_store(spec.config.output, spec.config.s3)
        self._part_s = part_s
        self._pause_s = max(1.0, spec.config.replicas.max / NEWS_PER_S)

    def run(self, task: Task, dice: random.Random) -> Generator[Any, None, None]:
        """A shard: time passes, reports of progress come, and parts are committed for good."""
        shard, samples = task.shard, self._spec.dataset.part_samples
        first, beyond = shard.rows or (0, 0)
        done = CommittedParts(self._store, shard.name, samples, task.committed)
        last = math.ceil((beyond - first) / samples) - 1
        for part in range(last + 1):
            if done.holds(part * samples):
                continue
            try:
                left = dice.uniform(0.5, 1.5) * self._part_s
                while left > 0:
                    pause = min(left, self._pause_s)
                    yield Wait(pause)
                    left -= pause
                    yield ShardAdvanced(shard.name, int(samples * (1 - left / self._part_s)), part / (last + 1))
                if part == last:
                    yield WantsMore()
                yield Wait(STORING_S)
            except GeneratorExit:
                with suppress(_Died):
                    dying = cast("ObjectStore", _DyingStore(self._store, dice.randrange(WRITES + 1)))
                    self._commit(dying, task, part, part == last)
                raise
            yield self._commit(self._store, task, part, part == last)

    def _commit(self, store: ObjectStore, task: Task, part: int, last: bool) -> PartReport:
        samples, (first, beyond) = self._spec.dataset.part_samples, task.shard.rows or (0, 0)
        indices = range(part * samples, min((part + 1) * samples, beyond - first))
        keys = {index: str(first + index) for index in indices}
        bad = [index for index in indices if (first + index) % BAD_OF == 0]
        record = commit_part(store, self._spec.dataset, shard_input(task.shard), part, keys, last, MEMBER_BYTES, bad)
        if record is None:
            return PartReport(task.shard.name, part, 0, {}, 0, last, 0.0)
        size = record.statistics.member_bytes
        return PartReport(task.shard.name, part, record.stored, record.statistics.reasons, size, last, 12.5)


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Run the job to its end, run it again, and count every sample in the store.

    Raises:
        TrioRayError: the job failed.
    """
    config = _config(order)
    replicas: dict[str, _Replica] = {}

    def behaviour_of(actor_class: Any, arguments: tuple[Any, ...]) -> Behaviour:
        (spec,) = arguments
        return replicas.setdefault(spec.run_id, _Replica(spec, order["part_s"])).run

    cluster = SimulatedRay(Hosts(**order["hosts"]), behaviour_of, order["seed"])
    events: dict[str, int] = {}

    def count(event: object, summary: object) -> None:
        events[type(event).__name__] = events.get(type(event).__name__, 0) + 1

    resident = resident_bytes()
    start_peak()
    began, cpu_before = time.perf_counter(), time.process_time()
    with (
        cluster.installed(job),
        patch.object(job, "ray_session", lambda cpus: nullcontext()),
        patch.object(plan, "uuid", _SeededIds(order["seed"])),  # a run's id says with which shard it begins
    ):
        summary = run_job(config, observer=count)
        driver_s = time.process_time() - cpu_before - cluster.cpu_s
        seconds, memory, ended = time.perf_counter() - began, peak_bytes() - resident, cluster.now
        cluster.run_out()
        again = run_job(config)
    found = account(open_store(config.output, config.s3), order["shards"], SHARD_PARTS * PART_SAMPLES)
    return {
        "simulated_s": ended,
        "seconds": seconds,
        "driver_cpu_s": driver_s,
        "memory": memory,
        "events": events,
        "actors": cluster.started,
        "deaths": cluster.deaths,
        "partitions": cluster.partitions,
        "parts": summary.parts,
        "given_up": len(summary.failed),
        "second_run": {"shards_before": again.shards_before, "parts": again.parts, "failed": len(again.failed)},
        **found,
    }


def _config(order: dict[str, Any]) -> JobConfig:
    """The job; its input is one file of rows, which is cut into shards."""
    rows = order["shards"] * SHARD_PARTS * PART_SAMPLES
    file = Path(order["input"])
    with file.open("w", encoding="utf-8") as lines:
        for row in range(rows):
            lines.write(f'{{"id": "{row}", "image": "{row}.jpg", "question": "What is this?"}}\n')
    hosts = order["hosts"]
    return load_config(
        values={
            "input": [str(file)],
            "output": order["uri"],
            "s3": order["s3"],
            "source.rows_per_shard": SHARD_PARTS * PART_SAMPLES,
            "cache.codec": "raw",
            "cache.part_samples": PART_SAMPLES,
            "replicas.max": hosts["hosts"] * hosts["actors_each"],
            "replicas.gpus": 0,
        }
    )


def main() -> int:
    """Read an order from standard input, write what was found as JSON."""
    print(json.dumps(run(json.load(sys.stdin))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
