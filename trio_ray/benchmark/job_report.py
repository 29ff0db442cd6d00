"""A whole-job benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any


def markdown(record: Mapping[str, Any]) -> str:
    """A line on where, one on the bare replica, a table with a line a run, and what a kill cost."""
    machine, bare = record["machine"], median(record["bare"]["samples_per_s"])
    lines = [
        f"{record['shapes']}, workload {record['workload']}, on "
        f"{machine['device']} with {machine['cpus']} CPUs, {record['date'][:10]}.",
        f"Bare replica: {bare:.1f} samples/s; its model loads in {record['bare']['load_s']:.1f} s.",
        "",
        "| replicas | codec | samples | samples/s | of the bare replicas | times the first run | GPU busy "
        "| MB/s written | all loaded, s | tail, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    first = record["runs"][0]["samples_per_s"]
    for run in record["runs"]:
        rate = run["samples_per_s"]
        cells = (
            run["replicas"],
            run["codec"],
            run["samples"],
            _number(rate),
            _number(run["times_bare"], 100, " %"),
            _number(rate / first if rate and first else None, digits=2),
            _number(run["busy"], 100, " %"),
            _number(run["bytes_per_s"], 1e-6, digits=0),
            _number(run["all_ready_s"]),
            _number(run["tail_s"]),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if any(run["samples_per_s"] is None for run in record["runs"]):
        lines += ["", "A run without a rate was too short: each replica has to commit several parts."]
    if "kill" in record:
        lines += ["", _kill(record["kill"])]
    return "\n".join(lines)


def _kill(run: Mapping[str, Any]) -> str:
    return (
        f"One of {run['replicas']} replicas killed after {_number(run['killed_s'])} s, replaced at "
        f"{_number(run['replaced_s'])} s: {_number(run['samples_per_s_before'])} samples/s before, "
        f"{_number(run['samples_per_s_after'])} after; {run['samples']} of {run['expected']} samples stored, once each."
    )


def _number(value: float | None, times: float = 1.0, unit: str = "", digits: int = 1) -> str:
    """`value * times`, or a question mark where there is none."""
    return "?" if value is None else f"{value * times:.{digits}f}{unit}"
