"""Size against loss of every codec, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trio_ray.evaluation.codec_report import CONTROLS, Record

MARKERS = "osD^vP*X<>ph"
FLOOR_KL = 1e-6
"""Smaller divergences are drawn here: the axis is logarithmic."""


def plot(questions: Sequence[Record], texts: Sequence[Record], path: str) -> None:
    """A panel each for accuracy lost, divergence of answers and perplexity, of those that were measured.

    Codecs have a colour, settings a marker; the file's ending gives the format.
    """
    from matplotlib.figure import Figure

    questions = [record for record in questions if record["codec"] not in CONTROLS]
    texts = [record for record in texts if record["codec"] not in CONTROLS]
    names = list(dict.fromkeys(record["codec"] for record in [*questions, *texts]))
    panels = 2 * bool(questions) + bool(texts)
    figure = Figure(figsize=(4 + 5 * panels, 6), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if questions:
        _draw_questions(axes[0], questions, names, _lost, "right answers lost, points")
        _draw_questions(axes[1], questions, names, _divergence, "mean KL of the answers' tokens from 16 bit, nats")
        axes[1].set_yscale("log")
    if texts:
        _draw_texts(axes[-1], texts, names)
    for one in axes:
        one.set_xscale("log", base=2)
        one.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
    figure.legend(handles=_handles(questions, names), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)


def _draw_questions(axes: Any, records: Sequence[Record], names: Sequence[str], measure: Any, label: str) -> None:
    for number, setting in enumerate(_settings(records)):
        points = sorted((r for r in records if _setting(r) == setting), key=lambda r: r["ratio"])
        axes.plot([r["ratio"] for r in points], [measure(r) for r in points], color="0.8", linewidth=1, zorder=1)
        for record in points:
            color = _color(names, record["codec"])
            axes.scatter(record["ratio"], measure(record), color=color, marker=MARKERS[number % len(MARKERS)], s=45)
    axes.set(xlabel="size: 16 bit of the same rows / stored", ylabel=label)


def _draw_texts(axes: Any, records: Sequence[Record], names: Sequence[str]) -> None:
    points = sorted(records, key=lambda record: record["ratio"])
    axes.plot([r["ratio"] for r in points], [100 * r["change"] for r in points], color="0.8", linewidth=1, zorder=1)
    for record in points:
        low, high = (100 * end for end in record["change_interval"])
        middle = 100 * record["change"]
        color = _color(names, record["codec"])
        # The intervals come from resampling, so the middle may lie a hair outside.
        error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar(record["ratio"], middle, yerr=error, color=color, marker="o", capsize=2)
    axes.set(xlabel="size: 16 bit of the same rows / stored", ylabel="perplexity of continued text, change in %")
    axes.set_yscale("symlog", linthresh=0.5)


def _handles(questions: Sequence[Record], names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    settings = [
        Line2D([], [], color="0.4", linestyle="", marker=MARKERS[number % len(MARKERS)], label=label)
        for number, label in enumerate(_settings(questions))
    ]
    codecs = [Line2D([], [], color=_color(names, name), linewidth=4, label=name) for name in names]
    return [*settings, *codecs]


def _settings(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(map(_setting, records)))


def _setting(record: Record) -> str:
    return f"{record['method']}, {100 * record['retention']:.3g} %"


def _color(names: Sequence[str], name: str) -> Any:
    from matplotlib import colormaps

    # The ten dark ones first, then their light twins.
    shades = (*range(0, 20, 2), *range(1, 20, 2))
    return colormaps["tab20"](shades[names.index(name) % 20])


def _lost(record: Record) -> float:
    return 100 * record["ways"]["question"]["lost"]


def _divergence(record: Record) -> float:
    return max(FLOOR_KL, record["ways"]["question"]["kl"])
