"""A benchmark's record as Markdown, short enough for a README."""

from __future__ import annotations

from typing import Any

from trio_ray.lab.prefill.stages import STAGES


def markdown(record: dict[str, Any]) -> str:
    """What was measured on what, the contestants, and their stages."""
    return "\n\n".join([_head(record), _contestants(record), _stages(record)])


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


def _contestants(record: dict[str, Any]) -> str:
    lines = [
        "| | images/s | samples/s | times unpruned | over random | TFLOP a sample | of the peak | memory, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in record["contestants"].items():
        cells = [
            name,
            f"{result['images_per_s']:.3g}",
            f"{result['samples_per_s']:.3g}",
            _or_dash(result["times_unpruned"], lambda ratio: f"{ratio:.2f}"),
            _or_dash(result["over_random"], lambda share: f"{100 * share:+.1f} %"),
            f"{result['flop_per_sample'] / 1e12:.3g}",
            f"{100 * result['share_of_peak']:.0f} %",
            _or_dash(result["peak_bytes"], lambda size: f"{size / 1e9:.1f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _stages(record: dict[str, Any]) -> str:
    lines = [
        "| ms a sample | tiles (one CPU thread) | " + " | ".join(STAGES) + " |",
        "|---|" + "---|" * (1 + len(STAGES)),
    ]
    for name, result in record["contestants"].items():
        cells = [f"{milliseconds:.3g}" for milliseconds in (result["stages_ms"][stage] for stage in STAGES)]
        lines.append(f"| {name} | {record['tiles_ms']:.3g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _or_dash(value: float | None, form: Any) -> str:
    return "-" if value is None else form(value)
