"""What whole jobs reached, as text."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from trio_ray.study import Columns, Study, shown, table

Run = Mapping[str, Any]


def study(record: Mapping[str, Any]) -> Study:
    """The machine, the bare replica, and a table with one line for each run; as far as the record goes."""
    machine = record["machine"]
    lines = [
        f"{record['shapes']}, workload {record['workload']}, on "
        f"{machine['device']} with {machine['cpus']} CPUs, {record['date'][:10]}."
    ]
    if "bare" in record:
        lines.append(_bare(record["bare"]))
    runs = [run for run in record["runs"] if "failed" not in run]
    if runs:
        lines += ["", table(runs, _columns(runs[0]["samples_per_s"]))]
    if any(run["samples_per_s"] is None for run in runs):
        lines += ["", "A run without a rate was too short: each replica has to commit several parts."]
    for run in record["runs"]:
        if "failed" in run:
            lines += ["", f"{run['replicas']} replicas, codec {run['codec']}: FAILED, {run['failed']}"]
    return Study("job", record, "\n".join(lines))


def _bare(bare: Mapping[str, Any]) -> str:
    rates = f"{median(bare['samples_per_s']):.1f} samples/s"
    if "coding_samples_per_s" in bare:
        rates += f", {median(bare['coding_samples_per_s']):.1f} with coding and the copy to the host"
    return f"Bare replica: {rates}; its model loads in {bare['load_s']:.1f} s."


def _columns(first: float | None) -> Columns[Run]:
    def times_first(run: Run) -> str | None:
        rate = run["samples_per_s"]
        return shown(rate / first if rate and first else None, ".2f")

    return {
        "replicas": lambda run: run["replicas"],
        "codec": lambda run: run["codec"],
        "samples": lambda run: run["samples"],
        "samples/s": lambda run: shown(run["samples_per_s"], ".1f"),
        "times the first run": times_first,
        "of the bare replicas": lambda run: shown(run["times_bare"], ".1f", " %", 100),
        "of bare + coding": lambda run: shown(run["times_bare_coding"], ".1f", " %", 100),
        "GPU busy": lambda run: shown(run["busy"], ".1f", " %", 100),
        "device, ms a sample": lambda run: shown(run["device_ms_per_sample"], ".1f"),
        "KB a sample": lambda run: shown(run["bytes_per_sample"], ".0f", times=1e-3),
        "MB/s written": lambda run: shown(run["bytes_per_s"], ".0f", times=1e-6),
        "all loaded, s": lambda run: shown(run["all_ready_s"], ".1f"),
        "all at work, s": lambda run: shown(run["begun_s"], ".1f"),
        "tail, s": lambda run: shown(run["tail_s"], ".1f"),
    }
