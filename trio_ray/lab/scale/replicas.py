"""A thousand replicas, some of them on bad hosts and some of them dying: what a whole job of them does to its cache."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trio_ray.config import S3Config
from trio_ray.lab.jobs.own_process import in_own_process
from trio_ray.study import Columns, Study, shown, table

MODULE = "trio_ray.lab.scale.simulated_job"

ACTORS_OF_A_HOST = 4
BAD_HOSTS = 0.05
"""Share of the hosts that are bad: on a third of them nothing starts, on a third all work fails, a third is silent."""


@dataclass(frozen=True)
class Load:
    """What the replicas do.

    Attributes:
        name: for people.
        part_s: seconds that a replica takes for a part.
        deaths_an_hour: share of the replicas that die in an hour.
        shards: of four parts; so many in all.
    """

    name: str
    part_s: float
    deaths_an_hour: float
    shards: int


def usual_loads(replicas: int) -> tuple[Load, ...]:
    """A job at the real pace of parts, one of slow parts, and one in which a hundred times as many replicas die.

    Most of the time goes into the reports of progress, of which all replicas together send 50 a simulated second.
    """
    return (
        Load("real pace, 1 % die an hour", 8.6, 0.01, 2 * replicas),
        Load("slow parts, 1 % die an hour", 150.0, 0.01, replicas),
        Load("slow parts, all die an hour", 150.0, 1.0, replicas),
    )


def run_replicas(uri: str, s3: S3Config, replicas: int, load: Load, seed: int = 0) -> dict[str, Any]:
    """Simulate a job and count its samples.

    Args:
        uri: of the cache; nothing may be there.
        s3: how S3 is reached.
        replicas: that the job asks for.
        load: what they do.
        seed: of all chance.

    Raises:
        JobFailed: the job failed.
    """
    hosts = max(4, replicas // ACTORS_OF_A_HOST)
    bad = max(3, round(BAD_HOSTS * hosts))
    kinds = {"bad": bad - 2 * (bad // 3), "sick": bad // 3, "silent": bad // 3}
    with tempfile.TemporaryDirectory() as folder:
        order = {
            "uri": uri,
            "s3": s3.model_dump(mode="json"),
            "input": str(Path(folder) / "rows.jsonl"),
            "shards": load.shards,
            "part_s": load.part_s,
            "seed": seed,
            "hosts": {
                "hosts": hosts,
                "actors_each": ACTORS_OF_A_HOST,
                **kinds,
                "deaths_an_hour": load.deaths_an_hour,
            },
        }
        found = in_own_process(MODULE, f"simulation of {replicas} replicas", order)
    return {**asdict(load), "replicas": replicas, "hosts": hosts, "bad_hosts": bad, **found}


def study(record: Mapping[str, Any]) -> Study:
    """A line a job: what it met, what it lost, and what its driver took."""
    jobs: Sequence[Mapping[str, Any]] = record["jobs"]
    damage = [finding for job in jobs for finding in job["damage"]]
    return Study("replicas", record, "\n".join([table(jobs, _COLUMNS), *damage]))


_COLUMNS: Columns[Mapping[str, Any]] = {
    "job": lambda job: job["name"],
    "replicas": lambda job: job["replicas"],
    "bad hosts": lambda job: f"{job['bad_hosts']} of {job['hosts']}",
    "simulated h": lambda job: shown(job["simulated_s"] / 3600, ".2f"),
    "deaths (partitions)": lambda job: f"{job['deaths']} ({job['partitions']})",
    "parts": lambda job: f"{job['parts']:,}",
    "samples": lambda job: f"{job['samples']:,}",
    "lost": lambda job: job["lost"],
    "doubled": lambda job: job["doubled"],
    "damage": lambda job: len(job["damage"]),
    "given up": lambda job: job["given_up"],
    "parts of a second run": lambda job: job["second_run"]["parts"],
    "driver, cores": lambda job: shown(job["driver_cpu_s"] / job["simulated_s"], ".3f"),
    "driver, ms a part": lambda job: shown(job["driver_cpu_s"] / max(1, job["parts"]), ".2f", times=1e3),
    "memory, MB": lambda job: shown(job["memory"], ",.0f", times=1e-6),
}
