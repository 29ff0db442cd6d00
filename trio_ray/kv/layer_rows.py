"""A small picture of how many rows each layer holds, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM = 420, 110, 44, 24
IMAGE, TEXT = "#d98200", "#7a8794"


@dataclass(frozen=True)
class LayerRun:
    """A run of layers with the same rows."""

    first_layer: int
    layers: int
    text: float
    image: float


def layer_rows_svg(runs: Sequence[LayerRun], title: str) -> str:
    """Bars over the layers: text rows below, image rows on top. `title` says it in words; it must be plain text."""
    layers = max(1, sum(run.layers for run in runs))
    most = max([run.text + run.image for run in runs] + [1])
    wide, tall = WIDTH - LEFT - 6, HEIGHT - BOTTOM - 8
    drawn = []
    for run in runs:
        x, width = LEFT + wide * run.first_layer / layers, wide * run.layers / layers - 1
        text, image = tall * run.text / most, tall * run.image / most
        drawn.append(
            _bar(x, 8 + tall - text, width, text, TEXT) + _bar(x, 8 + tall - text - image, width, image, IMAGE)
        )
        label = f"{run.text + run.image:,.0f}"
        drawn.append(f'<text x="{x + 2:.1f}" y="{max(17.0, 4 + tall - text - image):.1f}">{label}</text>')
    drawn.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">layer 0</text>')
    drawn.append(f'<text x="{WIDTH - 6}" y="{HEIGHT - 8}" text-anchor="end">layer {layers - 1}</text>')
    drawn.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">rows held: grey text, amber image</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" font-family="sans-serif" font-size="11" fill="currentColor"><title>{title}</title>'
        f"{''.join(drawn)}</svg>"
    )


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" fill="{colour}"/>'
