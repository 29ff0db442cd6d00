"""A picture of what was kept: the image's tiles, prune point by prune point, dropped tokens darkened."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trio_ray.model.tiles import Tiler

PATCH_PIXELS = 14
"""Side of a drawn patch; the picture does not depend on the model's own patch size."""

GAP = 12
CAPTION = 16
DARK = 0.22
NEWLINE_WIDTH = 4
KEPT, DROPPED, TILE_EDGE, PAPER = (255, 176, 0), (70, 70, 70), (0, 200, 255), (250, 250, 250)


def draw_overlay(
    image: NDArray[np.uint8], tiler: Tiler, kept: Sequence[Sequence[int]], layers: Sequence[int]
) -> Image.Image:
    """Draw which tokens of one image each prune point keeps.

    A row for each prune point: the base view on the left, the unpadded high-resolution grid on the right with its tile
    edges and, at the end of each patch row, its newline token.

    Args:
        image: (height, width, 3) uint8.
        tiler: the model's tiles.
        kept: per prune point, numbers of the kept tokens within this image.
        layers: per prune point, the layer before which it drops.
    """
    height, width = image.shape[:2]
    total = tiler.token_count(height, width)
    rows = [_draw_point(image, tiler, set(numbers)) for numbers in kept]
    picture = Image.new("RGB", (rows[0].width + 2 * GAP, sum(row.height + CAPTION + GAP for row in rows) + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    at = GAP
    for row, numbers, layer in zip(rows, kept, layers, strict=True):
        draw.text((GAP, at), f"before layer {layer}: {len(numbers)} of {total} tokens kept", fill=(0, 0, 0))
        picture.paste(row, (GAP, at + CAPTION))
        at += row.height + CAPTION + GAP
    return picture


def _draw_point(image: NDArray[np.uint8], tiler: Tiler, kept: set[int]) -> Image.Image:
    side = tiler.side
    place = tiler.placement(*image.shape[:2])
    rows, columns = (stop - start for start, stop in (place.patch_rows, place.patch_columns))
    base = np.array([[row * side + column in kept for column in range(side)] for row in range(side)])
    first = side * side
    grid = np.array(
        [[first + row * (columns + 1) + column in kept for column in range(columns)] for row in range(rows)]
    )
    newlines = [first + row * (columns + 1) + columns in kept for row in range(rows)]
    left = _draw_patches(image, base.reshape(side, side), (side, side))
    if not rows or not columns:
        return left
    right = _draw_patches(image, grid.reshape(rows, columns), (rows, columns))
    _draw_tile_edges(right, side, place.patch_rows[0], place.patch_columns[0])
    both = Image.new("RGB", (left.width + GAP + right.width + NEWLINE_WIDTH, max(left.height, right.height)), PAPER)
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP, 0))
    draw = ImageDraw.Draw(both)
    for row, is_kept in enumerate(newlines):
        x, y = left.width + GAP + right.width, row * PATCH_PIXELS
        draw.rectangle((x, y + 1, x + NEWLINE_WIDTH - 1, y + PATCH_PIXELS - 2), fill=KEPT if is_kept else DROPPED)
    return both


def _draw_patches(image: NDArray[np.uint8], kept: NDArray[np.bool_], shape: tuple[int, int]) -> Image.Image:
    """The image squeezed onto (rows, columns) patches; kept ones bright and framed, the others dark."""
    size = (shape[1] * PATCH_PIXELS, shape[0] * PATCH_PIXELS)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    light = np.where(kept, 1.0, DARK).repeat(PATCH_PIXELS, 0).repeat(PATCH_PIXELS, 1)[..., None]
    picture = Image.fromarray((pixels * light).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for row, column in zip(*np.nonzero(kept), strict=True):
        x, y = int(column) * PATCH_PIXELS, int(row) * PATCH_PIXELS
        draw.rectangle((x, y, x + PATCH_PIXELS - 1, y + PATCH_PIXELS - 1), outline=KEPT)
    return picture


def _draw_tile_edges(picture: Image.Image, side: int, first_row: int, first_column: int) -> None:
    """Lines where one tile ends and the next begins; unpadding may have cut the first tile short."""
    draw = ImageDraw.Draw(picture)
    step = side * PATCH_PIXELS
    for x in range(step - first_column * PATCH_PIXELS, picture.width, step):
        draw.line((x, 0, x, picture.height), fill=TILE_EDGE)
    for y in range(step - first_row * PATCH_PIXELS, picture.height, step):
        draw.line((0, y, picture.width, y), fill=TILE_EDGE)
