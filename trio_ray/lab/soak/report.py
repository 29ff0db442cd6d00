"""What a soak found, as tables, and whether it is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trio_ray.study import Columns, Study, table

_NAMES = {
    "driver": "driver killed",
    "replica": "replica killed",
    "writer": "storing process killed",
    "node": "node lost, with all its processes",
    "stopped": "replica stopped (SIGSTOP)",
    "disk_full": "disk full for some seconds",
    "503": "503 SlowDown",
    "500": "500 InternalError",
    "reset_before": "connection reset, request not done",
    "reset_after": "connection reset, request done",
    "cut_body": "body of the answer cut",
    "delay": "answer delayed",
}
_JOBS: Columns[Mapping[str, Any]] = {
    "output": lambda job: job["output"],
    "seconds": lambda job: f"{job['seconds']:.0f}",
    "samples": lambda job: job["samples"],
    "lost": lambda job: job["lost"],
    "doubled": lambda job: job["doubled"],
    "damaged": lambda job: len(job["damage"]),
    "ended": lambda job: "yes" if job["ended"] else "NO",
}


def study(record: Mapping[str, Any]) -> Study:
    """The record as tables."""
    counts = [*record["acts"].items(), *record["faults"].items()]
    happened = table(counts, {"what": lambda pair: _NAMES[pair[0]], "times": lambda pair: pair[1]})
    jobs = record["jobs"]
    total = {name: sum(job[name] for job in jobs) for name in ("samples", "lost", "doubled")}
    kills, faults = sum(record["acts"].values()), sum(record["faults"].values())
    runs = ", ".join(f"{count} {code}" for code, count in sorted(record["runs"].items()))
    text = (
        f"{record['seconds'] / 60:.1f} minutes, {kills} kills and stops, {record['requests']:,} requests, {faults:,} "
        f"({100 * faults / max(1, record['requests']):.0f} %) of them faulty; {len(jobs)} jobs, "
        f"{total['samples']:,} samples: **{total['lost']} lost, {total['doubled']} doubled**. Runs of the command by "
        f"exit code: {runs}. Stopped replicas that lived on: {record['survived']}. Tracebacks shown: "
        f"{record['tracebacks']}.\n\n{happened}\n\n{table(jobs, _JOBS)}"
    )
    return Study("soak", record, text)


def what_is_wrong(record: Mapping[str, Any], at_least: int) -> list[str]:
    """Sentences about what must not be; none if all is well.

    Args:
        record: of a soak.
        at_least: times that every kill and every fault must have happened.
    """
    wrong = [
        f"job {number} ({job['output']}): {job['lost']} lost, {job['doubled']} doubled, {len(job['damage'])} damaged"
        + ("" if job["ended"] else ", did not end")
        for number, job in enumerate(record["jobs"])
        if job["wrong"] or not job["ended"]
    ]
    if record["survived"]:
        wrong.append(f"{record['survived']} stopped replicas were not ended by replicas.silence_limit_s")
    if record["tracebacks"]:
        wrong.append(f"{record['tracebacks']} tracebacks were shown to the user")
    rare = {name: count for name, count in (*record["acts"].items(), *record["faults"].items()) if count < at_least}
    if rare:
        found = ", ".join(f"{_NAMES[name]} {count}" for name, count in rare.items())
        wrong.append(f"happened less than {at_least} times: {found}; give more --most-minutes")
    return wrong
