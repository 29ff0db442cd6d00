"""A distillation's metrics as a few lines to read."""

from __future__ import annotations

from typing import Any


def report(metrics: dict[str, Any]) -> str:
    """What `run_distillation` returned, as text."""
    steps, skipped = metrics["steps"], metrics["skipped"]
    left_out = f" ({skipped} unreadable samples left out)" if skipped else ""
    lines = [
        f"{metrics['student_layers']} layers, {metrics['trained_parameters']:,} trained parameters, "
        f"{steps['all']} steps on {metrics['samples']} samples{left_out}",
        f"{steps['this_run']} steps in this run, {metrics['seconds']:.1f} s",
    ]
    test = metrics.get("test")
    if test is not None and test["questions"]:
        low, high = test["interval"]
        lines.append(
            f"accuracy {100 * test['accuracy']:.1f} % (95 % interval {100 * low:.1f} - {100 * high:.1f}), "
            f"{test['questions']} held-out questions"
        )
    return "\n".join(lines)
