"""A benchmark's record as Markdown, short enough for a README."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from trio_ray.lab.prefill.stages import STAGES
from trio_ray.study import Columns, Study, shown, table


def study(record: dict[str, Any]) -> Study:
    """What was measured on what, the contestants, and their stages."""
    contestants = list(record["contestants"].items())
    tables = [table(contestants, CONTESTANT_COLUMNS), table(contestants, _stage_columns(record["tiles_ms"]))]
    return Study("prefill", record, "\n\n".join([_head(record), *tables]))


def _head(record: dict[str, Any]) -> str:
    workload, machine = record["workload"], record["machine"]
    arithmetic = record["dtype"] + (" and fp8 matrix products" if record["matmul"] == "fp8" else "")
    return (
        f"{record['shapes']}, {arithmetic}, attention {record['attention']}, on {machine['device']} with "
        f"{machine['cpus']} CPUs, {record['date'][:10]}. Workload {workload['name']}: {workload['samples']} "
        f"samples of {workload['images']} images, {workload['rows']:.0f} rows and {workload['tiles']:.1f} tiles each; "
        f"retention {100 * record['settings']['retention']:.1f} %. Batches of {record['token_budget']} rows; matrix "
        f"products alone reach {record['peak_flops']['median'] / 1e12:.3g} TFLOP/s."
    )


Contestant = tuple[str, dict[str, Any]]
"""Its name and its record."""

CONTESTANT_COLUMNS: Columns[Contestant] = {
    "": lambda one: one[0],
    "images/s": lambda one: shown(one[1]["images_per_s"], ".3g"),
    "samples/s": lambda one: shown(one[1]["samples_per_s"], ".3g"),
    "times unpruned": lambda one: shown(one[1]["times_unpruned"], ".2f"),
    "over random": lambda one: shown(one[1]["over_random"], "+.1f", " %", times=100),
    "TFLOP a sample": lambda one: shown(one[1]["flop_per_sample"], ".3g", times=1e-12),
    "of the peak": lambda one: shown(one[1]["share_of_peak"], ".0f", " %", times=100),
    "memory, GB": lambda one: shown(one[1]["peak_bytes"], ".1f", times=1e-9),
}


def _stage_columns(tiles_ms: float) -> Columns[Contestant]:
    columns: dict[str, Callable[[Contestant], object]] = {
        "ms a sample": lambda one: one[0],
        "tiles (one CPU thread)": lambda one: shown(tiles_ms, ".3g"),
    }
    return columns | {stage: partial(_stage, stage) for stage in STAGES}


def _stage(stage: str, one: Contestant) -> str | None:
    return shown(one[1]["stages_ms"][stage], ".3g")
