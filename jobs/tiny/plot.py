"""Draw the curves of a training."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from trio_ray.lab.scenes import QUESTION_TYPES


def plot_curves(curves: Path, out: Path) -> None:
    """Losses, and validation accuracy by question type, over steps."""
    lines = [json.loads(line) for line in curves.read_text(encoding="utf-8").splitlines()]
    reports = [line for line in lines if line["event"] == "report"]
    figure, (losses, accuracy) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, label in (("answers", "answers"), ("patches", "patches (what each patch shows)")):
        points = [(line["step"], line[name]) for line in reports if line[name] > 0]
        losses.plot(*zip(*points, strict=True), label=label)
    losses.set(xlabel="step", ylabel="loss (nats)", yscale="log")
    for name in (*QUESTION_TYPES, "all"):
        points = [(line["step"], 100 * line[name]) for line in reports if name in line]
        style = {"color": "black", "linewidth": 2} if name == "all" else {"linewidth": 1}
        if points:
            accuracy.plot(*zip(*points, strict=True), label=name, **style)
    accuracy.set(xlabel="step", ylabel="validation questions right (%)", ylim=(0, 101))
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)
