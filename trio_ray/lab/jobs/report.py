"""A whole-job benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

Run = Mapping[str, Any]


def markdown(record: Mapping[str, Any]) -> str:
    """A line on where, on the codec and on the bare replica, a table with a line a run, and what a kill cost; as far
    as the record has come.
    """
    machine = record["machine"]
    lines = [
        f"{record['shapes']}, workload {record['workload']}, on "
        f"{machine['device']} with {machine['cpus']} CPUs, {record['date'][:10]}."
    ]
    if "calibration" in record:
        lines.append(_calibration(record["calibration"]))
    if "bare" in record:
        lines.append(_bare(record["bare"]))
    runs = [run for run in record["runs"] if "failed" not in run]
    if runs:
        lines += ["", *_table(runs)]
    if any(run["samples_per_s"] is None for run in runs):
        lines += ["", "A run without a rate was too short: each replica has to commit several parts."]
    for run in record["runs"]:
        if "failed" in run:
            lines += ["", f"{run['replicas']} replicas, codec {run['codec']}: FAILED, {run['failed']}"]
    if "kill" in record:
        lines += ["", _kill(record["kill"])]
    return "\n".join(lines)


def _calibration(found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return f"Codec auto: FAILED, {found['failed']}"
    return f"Codec auto, calibrated once in {found['seconds']:.1f} s: {found['why']}."


def _bare(bare: Mapping[str, Any]) -> str:
    rates = f"{median(bare['samples_per_s']):.1f} samples/s"
    if "coding_samples_per_s" in bare:
        rates += f", {median(bare['coding_samples_per_s']):.1f} with coding and the copy to the host"
    return f"Bare replica: {rates}; its model loads in {bare['load_s']:.1f} s."


def _table(runs: list[Run]) -> list[str]:
    first = runs[0]["samples_per_s"]

    def times_first(run: Run) -> str:
        rate = run["samples_per_s"]
        return _number(rate / first if rate and first else None, digits=2)

    columns: dict[str, Callable[[Run], object]] = {
        "replicas": lambda run: run["replicas"],
        "codec": lambda run: run["codec"],
        "samples": lambda run: run["samples"],
        "samples/s": lambda run: _number(run["samples_per_s"]),
        "times the first run": times_first,
        "of the bare replicas": lambda run: _number(run["times_bare"], 100, " %"),
        "of bare + coding": lambda run: _number(run["times_bare_coding"], 100, " %"),
        "GPU busy": lambda run: _number(run["busy"], 100, " %"),
        "device, ms a sample": lambda run: _number(run["device_ms_per_sample"]),
        "KB a sample": lambda run: _number(run["bytes_per_sample"], 1e-3, digits=0),
        "MB/s written": lambda run: _number(run["bytes_per_s"], 1e-6, digits=0),
        "all loaded, s": lambda run: _number(run["all_ready_s"]),
        "all at work, s": lambda run: _number(run["begun_s"]),
        "tail, s": lambda run: _number(run["tail_s"]),
    }
    rows = [[str(cell(run)) for cell in columns.values()] for run in runs]
    return [f"| {' | '.join(row)} |" for row in (list(columns), ["---"] * len(columns), *rows)]


def _kill(run: Run) -> str:
    if "failed" in run:
        return f"{run['replicas']} replicas, one killed: FAILED, {run['failed']}"
    stored = f"{run['samples']} of {run['expected']} samples are in the cache"
    if run["killed_s"] is None:
        return (
            f"No replica was killed, as the job had ended before it was time (more --shards make it longer): {stored}."
        )
    lost, loaded, back = (run[name] for name in ("noticed_after_s", "replaced_after_s", "recovered_after_s"))
    before, after = run["samples_per_s_before"], run["samples_per_s_after"]
    return (
        f"One of {run['replicas']} replicas killed at {_number(run['killed_s'])} s: noticed {_number(lost)} s later; "
        f"its replacement was loaded {_number(loaded)} s and had committed its first part {_number(back)} s after the "
        f"kill. {_number(before)} samples/s before it, {_number(after)} behind that part. Shards that both it and "
        f"others have committed parts of: {run['shards_taken_over']}; {stored}."
    )


def _number(value: float | None, times: float = 1.0, unit: str = "", digits: int = 1) -> str:
    """`value * times`, or a question mark where there is none."""
    return "?" if value is None else f"{value * times:.{digits}f}{unit}"
