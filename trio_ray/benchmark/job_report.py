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
    first = record["runs"][0]
    for run in record["runs"]:
        lines.append(
            f"| {run['replicas']} | {run['codec']} | {run['samples']} | {run['samples_per_s']:.1f} "
            f"| {100 * run['times_bare']:.1f} % | {run['samples_per_s'] / first['samples_per_s']:.2f} "
            f"| {100 * run['busy']:.1f} % "
            f"| {run['bytes_per_s'] / 1e6:.0f} | {run['all_ready_s']:.1f} | {run['tail_s']:.1f} |"
        )
    if "kill" in record:
        lines += ["", _kill(record["kill"])]
    return "\n".join(lines)


def _kill(run: Mapping[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "?" if value is None else f"{value:.1f}"

    return (
        f"One of {run['replicas']} replicas killed after {number(run['killed_s'])} s, replaced at "
        f"{number(run['replaced_s'])} s: {number(run['samples_per_s_before'])} samples/s before, "
        f"{number(run['samples_per_s_after'])} after; {run['samples']} of {run['expected']} samples stored, once each."
    )
