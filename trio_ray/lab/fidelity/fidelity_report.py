"""The three studies as tables and as one picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Records = Sequence[dict[str, Any]]


def pool(records: Iterable[dict[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Join the per-question lists of records that agree in `by`, batch after batch."""
    pooled: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        entry = pooled.setdefault(tuple(record[name] for name in by), {name: record[name] for name in by})
        for name, value in record.items():
            if isinstance(value, list):
                entry.setdefault(name, []).extend(value)
    return list(pooled.values())


def markdown(divergence: Records, agreement: Records, detail: Records) -> str:
    """Three Markdown tables."""
    lines = ["| depth | " + " | ".join(f"{name}: KL (first token equal)" for name in _names(divergence)) + " |"]
    lines.append("|---|" + "---|" * len(_names(divergence)))
    for depth in sorted({record["depth"] for record in divergence}):
        cells = []
        for name in _names(divergence):
            (record,) = [r for r in divergence if r["selector"] == name and r["depth"] == depth]
            cells.append(f"{np.mean(record['kl']):.3f} ({100 * np.mean(record['agrees']):.1f} %)")
        lines.append(f"| {depth} | " + " | ".join(cells) + " |")
    lines += ["", "| depth | Spearman: median (quartiles) | best tenth in common |", "|---|---|---|"]
    for record in agreement:
        low, middle, high = np.quantile(record["spearman"], [0.25, 0.5, 0.75])
        common = 100 * np.mean(record["overlap"])
        lines.append(f"| {record['depth']} | {middle:.2f} ({low:.2f} - {high:.2f}) | {common:.0f} % |")
    lines += ["", "| method | retention | fine questions | coarse questions |", "|---|---|---|---|"]
    for record in detail:
        fine, coarse = (_share(record, kind) for kind in ("fine", "coarse"))
        lines.append(f"| {record['method']} | {100 * record['retention']:.1f} % | {fine} | {coarse} |")
    return "\n".join(lines)


def plot(divergence: Records, agreement: Records, detail: Records, path: str) -> None:
    """Three panels: divergence over depth, rank agreement over depth, fine and coarse accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, marker in zip(_names(divergence), "osD^vP", strict=False):
        points = sorted((r for r in divergence if r["selector"] == name), key=lambda r: r["depth"])
        mean = [max(np.mean(point["kl"]), 1e-6) for point in points]
        left.plot([point["depth"] for point in points], mean, marker=marker, label=name)
    left.set(yscale="log", xlabel="pruned once, before layer", ylabel="mean KL from the unpruned answer, nats")
    left.legend(fontsize=8)
    depths = [record["depth"] for record in agreement]
    low, median, high = np.array([np.quantile(record["spearman"], [0.25, 0.5, 0.75]) for record in agreement]).T
    middle.plot(depths, median, marker="o", label="Spearman, median and quartiles")
    middle.fill_between(depths, low, high, alpha=0.2)
    middle.plot(depths, [np.mean(record["overlap"]) for record in agreement], marker="s", label="best tenth in common")
    middle.set(xlabel="score before layer", ylabel="agreement with the end-to-end gradient", ylim=(-0.2, 1))
    middle.legend(fontsize=8)
    labels = [f"{record['method']} {100 * record['retention']:.3g} %" for record in detail]
    place = np.arange(len(labels))
    right.barh(place - 0.2, [100 * (record["fine"] or 0) for record in detail], 0.4, label="fine")
    right.barh(place + 0.2, [100 * (record["coarse"] or 0) for record in detail], 0.4, label="coarse")
    right.set(yticks=place, yticklabels=labels, xlabel="right answers, %", xlim=(0, 100))
    right.invert_yaxis()
    right.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    for axes in (left, middle, right):
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _share(record: dict[str, Any], kind: str) -> str:
    return f"{100 * record[kind]:.1f} % of {record[f'{kind}_questions']}" if record[kind] is not None else "none asked"


def _names(divergence: Records) -> list[str]:
    return list(dict.fromkeys(record["selector"] for record in divergence))
