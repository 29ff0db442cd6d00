"""The three studies as tables and as one picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from trio_ray.study import Study, table

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


def study(divergence: Records, agreement: Records, detail: Records) -> Study:
    """Three tables, and one picture with a panel for each."""
    record = {"divergence": divergence, "agreement": agreement, "detail": detail}
    tables = [_divergence_table(divergence), _agreement_table(agreement), _detail_table(detail)]
    return Study("fidelity", record, "\n\n".join(tables), partial(plot, divergence, agreement, detail))


def _divergence_table(divergence: Records) -> str:
    columns: dict[str, Callable[[int], object]] = {"depth": str}
    for name in _names(divergence):
        columns[f"{name}: KL (first token equal)"] = partial(_divergence_cell, divergence, name)
    return table(sorted({record["depth"] for record in divergence}), columns)


def _divergence_cell(divergence: Records, name: str, depth: int) -> str:
    (record,) = [r for r in divergence if r["selector"] == name and r["depth"] == depth]
    return f"{np.mean(record['kl']):.3f} ({100 * np.mean(record['agrees']):.1f} %)"


def _agreement_table(agreement: Records) -> str:
    def spearman(record: dict[str, Any]) -> str:
        low, middle, high = np.quantile(record["spearman"], [0.25, 0.5, 0.75])
        return f"{middle:.2f} ({low:.2f} - {high:.2f})"

    return table(
        agreement,
        {
            "depth": lambda record: record["depth"],
            "Spearman: median (quartiles)": spearman,
            "best tenth in common": lambda record: f"{100 * np.mean(record['overlap']):.0f} %",
        },
    )


def _detail_table(detail: Records) -> str:
    return table(
        detail,
        {
            "method": lambda record: record["method"],
            "retention": lambda record: f"{100 * record['retention']:.1f} %",
            "fine questions": lambda record: _share(record, "fine"),
            "coarse questions": lambda record: _share(record, "coarse"),
        },
    )


def plot(divergence: Records, agreement: Records, detail: Records, path: str) -> None:
    """Three panels: divergence over depth, rank agreement over depth, fine and coarse accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, marker in zip(_names(divergence), "osD^vP", strict=False):
        points = sorted((r for r in divergence if r["selector"] == name), key=lambda r: r["depth"])
        mean = [max(np.mean(point["kl"]), 1e-6) for point in points]
        left.plot([point["depth"] for point in points], mean, marker=marker, label=name)
    left.set(
        title="What one prune changes",
        yscale="log",
        xlabel="pruned once, before layer",
        ylabel="mean KL from the unpruned answer, nats",
    )
    left.legend(fontsize=8)
    depths = [record["depth"] for record in agreement]
    low, median, high = np.array([np.quantile(record["spearman"], [0.25, 0.5, 0.75]) for record in agreement]).T
    middle.plot(depths, median, marker="o", label="Spearman, median and quartiles")
    middle.fill_between(depths, low, high, alpha=0.2)
    middle.plot(depths, [np.mean(record["overlap"]) for record in agreement], marker="s", label="best tenth in common")
    middle.set(
        title="Scores beside gradients",
        xlabel="score before layer",
        ylabel="agreement with the end-to-end gradient",
        ylim=(-0.2, 1),
    )
    middle.legend(fontsize=8)
    labels = [f"{record['method']} {100 * record['retention']:.3g} %" for record in detail]
    place = np.arange(len(labels))
    right.barh(place - 0.2, [100 * (record["fine"] or 0) for record in detail], 0.4, label="fine")
    right.barh(place + 0.2, [100 * (record["coarse"] or 0) for record in detail], 0.4, label="coarse")
    right.set(title="Answers by detail", yticks=place, yticklabels=labels, xlabel="right answers, %", xlim=(0, 100))
    right.invert_yaxis()
    right.legend(fontsize=8, loc="lower right")
    for axes in (left, middle, right):
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _share(record: dict[str, Any], kind: str) -> str:
    return f"{100 * record[kind]:.1f} % of {record[f'{kind}_questions']}" if record[kind] is not None else "none asked"


def _names(divergence: Records) -> list[str]:
    return list(dict.fromkeys(record["selector"] for record in divergence))
