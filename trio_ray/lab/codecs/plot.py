"""Size against loss of every codec, in one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trio_ray.lab.codecs.report import CONTROLS, Record

MARKERS = "osD^vP*X<>ph"
PALETTES = ("Greys", "Oranges", "Blues", "Greens", "Purples")
"""The colours of each family of codecs, from light to dark."""

FLOOR_KL = 1e-6
"""Smaller divergences are drawn at this value, because the axis is logarithmic."""


LINEAR = 2.0
"""Per cent: changes of perplexity up to this are drawn to scale; a logarithm's ticks would miss them."""


def plot(questions: Sequence[Record], texts: Sequence[Record], path: str) -> None:
    """A panel each for accuracy lost, divergence of answers and perplexity, of those that were measured.

    Families of codecs have a colour, settings a marker; the file's ending gives the format.
    """
    from matplotlib.figure import Figure

    questions = [record for record in questions if record["codec"] not in CONTROLS]
    texts = [record for record in texts if record["codec"] not in CONTROLS]
    colors = _colors(list(dict.fromkeys(record["codec"] for record in [*questions, *texts])))
    panels = 2 * bool(questions) + bool(texts)
    figure = Figure(figsize=(4 + 5 * panels, 6), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if questions:
        _draw(axes[0], questions, colors, _lost)
        axes[0].set_ylabel("right answers lost, points, with 95 % intervals")
        _draw(axes[1], questions, colors, _divergence)
        axes[1].set(ylabel="mean KL of the answers' tokens from 16 bit, nats", yscale="log")
    if texts:
        _draw(axes[-1], texts, colors, _perplexity)
        axes[-1].set_ylabel("perplexity of continued text, change in %, with 95 % intervals")
        if max(abs(bound) for record in texts for bound in _perplexity(record)) > LINEAR:
            axes[-1].set_yscale("symlog", linthresh=1)  # or the worst codec would press all others onto one line
    titles = [*(["Accuracy", "Divergence"] if questions else []), *(["Continued text"] if texts else [])]
    for one, title in zip(axes, titles, strict=True):
        one.set_title(f"{title} over size")
        one.set_xscale("log", base=2)
        one.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        one.set_xlabel("size: 16 bit of the same rows / stored")
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
    figure.legend(handles=_handles(questions, colors), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)


Measure = Callable[[Record], tuple[float, float, float]]
"""A record's value, and the ends of its interval."""


def _draw(axes: Any, records: Sequence[Record], colors: dict[str, Any], measure: Measure) -> None:
    settings = _settings(records)
    for record in records:
        value, low, high = measure(record)
        # Intervals come from resampling, so the value may lie a hair outside.
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        marker = MARKERS[settings.index(_setting(record)) % len(MARKERS)]
        style = {"color": colors[record["codec"]], "marker": marker, "markersize": 6, "markeredgecolor": "0.3"}
        axes.errorbar(record["ratio"], value, yerr=error, capsize=2, linewidth=1, markeredgewidth=0.5, **style)


def _handles(questions: Sequence[Record], colors: dict[str, Any]) -> list[Any]:
    from matplotlib.lines import Line2D

    settings = [
        Line2D([], [], color="0.4", linestyle="", marker=MARKERS[number % len(MARKERS)], label=label)
        for number, label in enumerate(_settings(questions))
    ]
    return [*settings, *(Line2D([], [], color=color, linewidth=4, label=name) for name, color in colors.items())]


def _settings(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(map(_setting, records)))


def _setting(record: Record) -> str:
    return f"{record['method']}, {100 * record['retention']:.3g} %" if "method" in record else "continued text"


def _colors(names: Sequence[str]) -> dict[str, Any]:
    """A palette for each family (`int2: protected 4` belongs to `int`), and a shade for each of its codecs."""
    from matplotlib import colormaps

    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.split(":")[0].rstrip("0123456789"), []).append(name)
    palettes = {family: PALETTES[number % len(PALETTES)] for number, family in enumerate(_ordered(families))}
    shades = {
        name: colormaps[palettes[family]](0.35 + 0.6 * (number + 1) / len(members))
        for family, members in families.items()
        for number, name in enumerate(members)
    }
    return {name: shades[name] for name in names}


def _ordered(families: dict[str, list[str]]) -> list[str]:
    """`raw` first, so that the control is grey."""
    return sorted(families, key=lambda family: family != "raw")


def _lost(record: Record) -> tuple[float, float, float]:
    measured = record["ways"]["question"]
    low, high = measured["lost_interval"]
    return 100 * measured["lost"], 100 * low, 100 * high


def _divergence(record: Record) -> tuple[float, float, float]:
    value = max(FLOOR_KL, record["ways"]["question"]["kl"])
    return value, value, value


def _perplexity(record: Record) -> tuple[float, float, float]:
    low, high = record["change_interval"]
    return 100 * record["change"], 100 * low, 100 * high
