"""Results as a table, as JSON, and as a plot of accuracy over retention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from trio_ray.evaluate.scoring.bootstrap import interval
from trio_ray.lab.accuracy.accuracy import Result
from trio_ray.lab.accuracy.questions import HeldOutQuestion
from trio_ray.study import Study, table

MARKERS = "osD^vP*X<>ph"
SPREAD = 1.018
"""Factor between neighbouring methods' places on the plot's logarithmic axis."""


def summarise(results: Sequence[Result], questions: Sequence[HeldOutQuestion]) -> list[dict[str, Any]]:
    """One record a result: accuracy with its 95 % interval, overall and by type, of fine and of coarse questions."""
    scenes = [question.scene for question in questions]
    groups = {f"type {question.type}" for question in questions}
    members = {group: np.array([f"type {q.type}" == group for q in questions]) for group in sorted(groups)}
    fine = np.array([question.fine for question in questions])
    if fine.any():
        members |= {"fine": fine, "coarse": ~fine}
    elif len(members) == 1:
        members = {}  # one kind of question: the column of all of them says it
    records = []
    for result in results:
        low, high = interval(result.right, scenes)
        records.append(
            {
                "method": result.setting.name,
                "retention": result.setting.retention,
                "tokens": result.tokens,
                "of_real": result.tokens / result.real,
                "of_nominal": result.tokens / result.nominal,
                "per_view": result.tokens / result.views,
                "prefills_per_second": result.rate,
                "questions": len(questions),
                "accuracy": result.accuracy,
                "interval": [low, high],
                "by_group": {
                    group: {"accuracy": float(result.right[mask].mean()), "questions": int(mask.sum())}
                    for group, mask in members.items()
                    if mask.any()
                },
            }
        )
    return records


def study(records: Sequence[dict[str, Any]]) -> Study:
    """A line a method and retention, with columns by question type; the plot shows accuracy over retention."""
    columns: dict[str, Callable[[dict[str, Any]], object]] = {
        "method": lambda record: record["method"],
        "retention": lambda record: f"{100 * record['retention']:.1f} %",
        "tokens": lambda record: f"{record['tokens']:.1f}",
        "of real": lambda record: f"{100 * record['of_real']:.1f} %",
        "of nominal": lambda record: f"{100 * record['of_nominal']:.1f} %",
        "a view": lambda record: f"{record['per_view']:.1f}",
        "prefills/s": lambda record: f"{record['prefills_per_second']:.1f}",
        "accuracy": lambda record: f"**{100 * record['accuracy']:.1f}**",
        "95 % interval": lambda record: " - ".join(f"{100 * end:.1f}" for end in record["interval"]),
    }
    for group in records[0]["by_group"]:
        columns[group.removeprefix("type ")] = partial(_accuracy_of, group)
    return Study("accuracy", records, table(records, columns), partial(plot, records))


def _accuracy_of(group: str, record: dict[str, Any]) -> str:
    return f"{100 * record['by_group'][group]['accuracy']:.1f}"


def plot(records: Sequence[dict[str, Any]], path: str) -> None:
    """Draw accuracy with intervals: of several retentions a line a method, of a single one a bar a method.

    The file's ending gives the format.
    """
    from matplotlib.figure import Figure

    pruned = [record for record in records if record["retention"] < 1]
    retentions = sorted({record["retention"] for record in pruned})
    figure = Figure(figsize=(11, 6 if len(retentions) != 1 else 1.6 + 0.42 * len(pruned)), layout="constrained")
    axes = figure.add_subplot()
    unpruned = [record for record in records if record["retention"] >= 1]
    title = f"Right answers of {max(record['questions'] for record in records):,} questions, with 95 % intervals"
    if len(retentions) == 1:
        axes.set_title(f"{title}; {100 * retentions[0]:.3g} % of the image tokens held, mean over layers")
        _draw_bars(axes, pruned, unpruned)
    else:
        axes.set_title(title)
        _draw_lines(axes, pruned, unpruned, retentions)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def _draw_bars(axes: Any, pruned: Sequence[dict[str, Any]], unpruned: Sequence[dict[str, Any]]) -> None:
    """A horizontal bar a method, the best one above."""
    ordered = sorted(pruned, key=lambda record: record["accuracy"])
    values = [100 * record["accuracy"] for record in ordered]
    bars = axes.barh(range(len(ordered)), values, xerr=_distances(ordered), color="#2f6fad", capsize=3, height=0.65)
    axes.set_yticks(range(len(ordered)), [record["method"] for record in ordered])
    axes.bar_label(bars, [f"{value:.1f}" for value in values], label_type="center", color="white", fontsize=9)
    for record in unpruned:
        axes.axvline(100 * record["accuracy"], color="black", linestyle="--", linewidth=1, label=record["method"])
    axes.set_xlabel("right answers, %")
    axes.set_xlim(0, min(112, 1.15 * max([100 * end for record in ordered for end in record["interval"]], default=100)))
    if unpruned:
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_lines(
    axes: Any, pruned: Sequence[dict[str, Any]], unpruned: Sequence[dict[str, Any]], retentions: Sequence[float]
) -> None:
    from matplotlib import colormaps

    methods = list(dict.fromkeys(record["method"] for record in pruned))
    # The ten dark ones first, then their light twins.
    colors = [colormaps["tab20"](shade) for shade in (*range(0, 20, 2), *range(1, 20, 2))]
    for record in unpruned:
        axes.axhline(100 * record["accuracy"], color="black", linestyle="--", linewidth=1, label=record["method"])
    for number, method in enumerate(methods):
        points = sorted((r for r in pruned if r["method"] == method), key=lambda r: r["retention"])
        # Side by side around each retention, so that the intervals do not cover each other.
        x = [100 * point["retention"] * SPREAD ** (number - (len(methods) - 1) / 2) for point in points]
        y = [100 * point["accuracy"] for point in points]
        style = {"color": colors[number % len(colors)], "marker": MARKERS[number % len(MARKERS)]}
        axes.errorbar(x, y, yerr=_distances(points), label=method, capsize=2, markersize=5, linewidth=1.2, **style)
    if retentions:
        axes.set_xscale("log")
        axes.set_xticks([100 * value for value in retentions], [f"{100 * value:.3g}" for value in retentions])
        axes.minorticks_off()
    axes.set_xlabel("image tokens held, mean over layers, % of what the image has")
    axes.set_ylabel("right answers, %")
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))


def _distances(records: Sequence[dict[str, Any]]) -> Any:
    """(2, records): from each accuracy down and up to the ends of its interval, in points."""
    ends = np.array([record["interval"] for record in records]).T
    return np.abs(100 * ends - 100 * np.array([record["accuracy"] for record in records]))
