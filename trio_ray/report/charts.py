"""Charts as SVG text for a page: small, readable on a phone and in print, and named for those who cannot see them.

Colours are classes of the page's style sheet, so that they follow its light and dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

WIDTH, HEIGHT = 460, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 8, 40
SERIES = 8
"""Colours of series in the style sheet."""

BINS = 40

Floats = NDArray[np.float64]
Form = Callable[[float], str]

_numbers = count(1)


class Chart(NamedTuple):
    """A chart, and the title that stands above it."""

    title: str
    svg: Markup


def histogram(title: str, values: Floats, unit: str, form: Form, bins: int = BINS) -> Chart:
    """How many values lie in each of `bins` intervals between the least and the largest one.

    Args:
        title: of the chart.
        values: (n,), at least one.
        unit: what stands below the axis.
        form: writes a value.
    """
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high, bins = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1), 11
    counts, edges = np.histogram(values, bins, (low, high))
    middle = ", ".join(f"{name} {form(float(value))}" for name, value in _quartiles(values))
    described = f"{len(values):,} values from {form(float(values.min()))} to {form(float(values.max()))}; {middle}."
    return columns(title, counts.astype(np.float64), edges, unit, form, described, "samples")


def columns(
    title: str, heights: Floats, edges: Floats, unit: str, form: Form, described: str, y_name: str = ""
) -> Chart:
    """Bars between neighbouring edges. `described` says the chart in words."""
    scale = _Scale(edges[0], edges[-1], max(float(heights.max(initial=0)), 1e-12))
    bars = []
    for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
        if height > 0:
            x, beyond, y = scale.x(left), scale.x(right), scale.y(height)
            bars.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(beyond - x - 1, 0.5):.1f}" '
                f'height="{HEIGHT - BOTTOM - y:.1f}"/>'
            )
    return _figure(title, described, scale.axes(unit, form, y_name) + "".join(bars))


def stacked(
    title: str, series: dict[str, Floats], edges: Floats, breaks: Sequence[float], unit: str, y_name: str, x_form: Form
) -> Chart:
    """Rates over time as bars on top of each other, a colour each series.

    Args:
        title: of the chart.
        series: by name (bins,), at most `SERIES` of them.
        edges: (bins + 1,) of the time axis.
        breaks: places on the time axis where idle time was cut out.
        unit, y_name: what stands below and beside the axes.
        x_form: writes a time.
    """
    total = np.sum(list(series.values()), axis=0)
    scale = _Scale(edges[0], edges[-1], max(float(total.max(initial=0)), 1e-12))
    drawn, base = [], np.zeros(len(edges) - 1)
    for number, heights in enumerate(series.values()):
        for height, below, left, right in zip(heights, base, edges[:-1], edges[1:], strict=True):
            if height > 0:
                x, y = scale.x(left), scale.y(below + height)
                wide = max(scale.x(right) - x - 0.6, 0.5)
                drawn.append(
                    f'<rect class="s{number % SERIES}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" '
                    f'height="{max(scale.y(below) - y, 0.4):.1f}"/>'
                )
        base = base + heights
    for place in breaks:
        x = scale.x(place)
        drawn.append(f'<line class="break" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    mean = float(total.mean()) if len(total) else 0.0
    described = f"{y_name}: {mean:,.1f} on average, {float(total.max(initial=0)):,.1f} at most."
    return _figure(title, described, scale.axes(unit, x_form, y_name) + "".join(drawn))


def lanes(title: str, rows: dict[str, Floats], edges: Floats, unit: str, x_form: Form) -> Chart:
    """A line for each row, the darker the nearer its value between 0 and 1 is to 1."""
    height = 22 if len(rows) <= 12 else 14
    left, width = 130, WIDTH - 130 - RIGHT
    span = max(edges[-1] - edges[0], 1e-9)
    drawn = []
    for number, (name, values) in enumerate(rows.items()):
        y = TOP + number * height
        short = name if len(name) <= 19 else f"…{name[-18:]}"
        drawn.append(f'<text class="end" x="{left - 6}" y="{y + height * 0.7:.1f}">{escape(short)}</text>')
        drawn.append(f'<rect class="lane" x="{left}" y="{y}" width="{width}" height="{height - 3}"/>')
        for value, start, stop in zip(values, edges[:-1], edges[1:], strict=True):
            if value > 0.005:
                x = left + width * (start - edges[0]) / span
                wide = width * (stop - start) / span
                drawn.append(
                    f'<rect class="bar" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{height - 3}" '
                    f'fill-opacity="{min(1.0, float(value)):.2f}"/>'
                )
    bottom = TOP + len(rows) * height
    for tick in _ticks(edges[0], edges[-1], 4):
        x = left + width * (tick - edges[0]) / span
        drawn.append(f'<text class="mid" x="{x:.1f}" y="{bottom + 14}">{escape(x_form(tick))}</text>')
    drawn.append(f'<text class="mid" x="{left + width / 2:.1f}" y="{bottom + 30}">{escape(unit)}</text>')
    described = "; ".join(f"{name}: {float(values.mean()):.0%}" for name, values in list(rows.items())[:12])
    return _figure(title, f"Mean share of time: {described}.", "".join(drawn), bottom + 36)


def bars(title: str, rows: dict[str, float], form: Form) -> Chart:
    """A horizontal bar for each name."""
    height, left = 24, 150
    most = max(max(rows.values(), default=0), 1e-12)
    drawn = []
    for number, (name, value) in enumerate(rows.items()):
        y = TOP + number * height
        wide = (WIDTH - left - 80) * value / most
        drawn.append(
            f'<text class="end" x="{left - 6}" y="{y + 15}">{escape(name)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{max(wide, 1):.1f}" height="{height - 7}"/>'
            f'<text x="{left + max(wide, 1) + 5:.1f}" y="{y + 15}">{escape(form(value))}</text>'
        )
    described = "; ".join(f"{name}: {form(value)}" for name, value in rows.items())
    return _figure(title, f"{described}.", "".join(drawn), TOP + height * len(rows) + 4)


def tile_map(title: str, base: float, tiles: NDArray[np.float64]) -> Chart:
    """The base view and the tiles of a grid, each with the share of its tokens that is kept."""
    rows, wide = tiles.shape
    cell, gap = 58, 14
    most = max(float(np.nanmax(tiles, initial=0)), base, 1e-12)
    width, height = (1 + wide) * cell + gap + 4, rows * cell + 22

    def draw(x: float, y: float, value: float) -> str:
        share = 0.0 if math.isnan(value) else value / most
        place = f'x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}"'
        return (
            f'<rect class="lane" {place}/><rect class="heat" {place} fill-opacity="{0.5 * share:.2f}"/>'
            f'<text class="mid strong" x="{x + cell / 2 - 1}" y="{y + cell / 2 + 4}">{value:.1%}</text>'
        )

    drawn = [draw(2, 18, base), '<text x="2" y="12">base</text>', f'<text x="{cell + gap + 2}" y="12">tiles</text>']
    for (row, column), value in np.ndenumerate(tiles):
        drawn.append(draw(2 + cell + gap + column * cell, 18 + row * cell, float(value)))
    words = "; ".join(f"tile {row + 1}.{column + 1}: {value:.1%}" for (row, column), value in np.ndenumerate(tiles))
    return _figure(title, f"Base view: {base:.1%}; {words}.", "".join(drawn), height, width, "tiles")


def _quartiles(values: Floats) -> list[tuple[str, float]]:
    names = ("lower quarter up to", "median", "upper quarter from")
    return list(zip(names, np.quantile(values, [0.25, 0.5, 0.75]).tolist(), strict=True))


class _Scale:
    """From values to places in the chart."""

    def __init__(self, low: float, high: float, top: float) -> None:
        self._low, self._high, self._top = float(low), float(high), top * 1.05

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self._low) / max(self._high - self._low, 1e-12)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / self._top)

    def axes(self, unit: str, form: Form, y_name: str) -> str:
        drawn = []
        for tick in _ticks(0.0, self._top, 4):
            y = self.y(tick)
            drawn.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="end" x="{LEFT - 5}" y="{y + 4:.1f}">{_short(tick)}</text>'
            )
        for tick in _ticks(self._low, self._high, 5):
            drawn.append(
                f'<text class="mid" x="{self.x(tick):.1f}" y="{HEIGHT - BOTTOM + 15}">{escape(form(tick))}</text>'
            )
        drawn.append(f'<text class="mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(unit)}</text>')
        if y_name:
            middle = (TOP + HEIGHT - BOTTOM) / 2
            drawn.append(
                f'<text class="mid" x="11" y="{middle}" transform="rotate(-90 11 {middle})">{escape(y_name)}</text>'
            )
        return "".join(drawn)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between two ends."""
    span = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(span / about))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.3g}"


def _figure(
    title: str, described: str, inside: str, height: float = HEIGHT, width: float = WIDTH, kind: str = ""
) -> Chart:
    number = next(_numbers)
    size = f' width="{width:g}" height="{height:g}"' if kind else ""
    return Chart(
        title,
        Markup(
            f'<svg class="chart {kind}" viewBox="0 0 {width:g} {height:g}"{size} role="img" '
            f'aria-labelledby="chart{number}t chart{number}d">'
            f'<title id="chart{number}t">{escape(title)}</title><desc id="chart{number}d">{escape(described)}</desc>'
            f"{inside}</svg>"
        ),
    )
