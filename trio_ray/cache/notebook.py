"""What a notebook shows of a cache and of its samples. Nothing is read for it that is not read already."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from trio_ray.kv.layer_rows import LayerRun, layer_rows_svg
from trio_ray.method.schedule import Schedule
from trio_ray.model.patch_grid import PatchGrid, kept_of_image
from trio_ray.store.totals import Totals

KEPT, DROPPED, NEITHER = (217, 130, 0), (196, 202, 210), (255, 255, 255)
LONGEST = 288
"""Pixels along the longer side of a map of kept tokens."""


def cache_html(shown: str, totals: Totals, schedule: Schedule, facts: Mapping[str, str]) -> str:
    """A cache's name, what it is, and how many image tokens its layers hold.

    Args:
        shown: its repr.
        totals: of its parts.
        schedule: of its method.
        facts: what else is said of it, by name.
    """
    mean = totals.image_tokens / totals.stored if totals.stored else 0.0
    lines = {
        **facts,
        "Samples": f"{totals.stored:,}, and {totals.quarantined:,} in quarantine",
        "Image tokens": f"{mean:,.1f} a sample, {totals.retention:.1%} of them held (mean over layers)",
        "Bytes": f"{totals.file_bytes:,}",
    }
    counts = [mean, *schedule.counts(round(mean))] if totals.stored else []
    starts = [0, *schedule.prune_points, schedule.layers]
    runs = [
        LayerRun(first, beyond - first, 0, count)
        for first, beyond, count in zip(starts[:-1], starts[1:], counts, strict=False)
        if beyond > first
    ]
    title = "; ".join(f"from layer {run.first_layer}: {run.image:.0f} image tokens" for run in runs)
    picture = layer_rows_svg(runs, title) if runs else ""
    return f"<p><b>{escape(shown)}</b></p>{_table(lines)}{picture}"


def sample_html(row: Mapping[str, Any], layers: tuple[int, ...], prefix: str) -> str:
    """A sample's question and answer, and a map of its kept tokens for each prune point; then its prefix."""
    lines = {"Key": row["key"], "Prompt": row["prompt"], "Answer": row["answer"] or "-"}
    maps = []
    for layer, kept in zip(layers, row["kept"], strict=False):
        for number, image in enumerate(row["images"]):
            words = f"before layer {layer}: {len(kept)} of {row['image_tokens']} image tokens"
            try:
                grid = PatchGrid.of_image(image)
            except ValueError:
                continue
            uri = kept_map(grid, kept_of_image(row["images"], kept, number))
            maps.append(f'<figure style="display:inline-block;margin:4px"><img src="{uri}" alt="{escape(words)}"/>'
                        f"<figcaption>{escape(words)}</figcaption></figure>")  # fmt: skip
    return f"{_table(lines)}{''.join(maps)}{prefix}"


def kept_map(grid: PatchGrid, kept: list[int]) -> str:
    """The base view on the left, the tiles on the right, a square for each token: amber kept, grey dropped.

    Returns a data URI. The last column of the tiles are the newline tokens.
    """
    masks = grid.masks(kept)
    left = _coloured(masks.base)
    right = _coloured(np.concatenate([masks.grid, masks.newlines[:, None]], 1)) if grid.rows else _blank(0, 0)
    tall = max(len(left), len(right))
    gap = 1
    whole = _blank(tall, left.shape[1] + gap + right.shape[1])
    whole[: len(left), : left.shape[1]] = left
    whole[: len(right), left.shape[1] + gap :] = right
    zoom = max(2, LONGEST // max(whole.shape[:2]))
    picture = Image.fromarray(whole.repeat(zoom, 0).repeat(zoom, 1))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _coloured(mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], np.array(KEPT, np.uint8), np.array(DROPPED, np.uint8)).astype(np.uint8)


def _blank(rows: int, columns: int) -> np.ndarray:
    return np.full((rows, columns, 3), NEITHER, np.uint8)


def _table(lines: Mapping[str, str]) -> str:
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in lines.items()
    )
    return f"<table>{cells}</table>"
