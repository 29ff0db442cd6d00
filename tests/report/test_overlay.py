"""The picture of what was kept."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.model.corpus import picture
from tests.tiny_models import PATCH, PINPOINTS, TILE
from trio_ray.model.tiles import Tiler
from trio_ray.report.overlay import CAPTION, GAP, NEWLINE_WIDTH, PATCH_PIXELS, draw_overlay

TILER = Tiler(
    tile=TILE, patch=PATCH, pinpoints=tuple((high, wide) for high, wide in PINPOINTS), resample=3, mean=(0.5,) * 3,
    std=(0.5,) * 3, scale=1 / 255,
)  # fmt: skip
SIDE = TILER.side


def patch(picture: Image.Image, point: int, row: int, column: int, left: int = 0, height: int = 0) -> float:
    """Mean brightness of a patch's inside, in the picture's row of one prune point."""
    top = GAP + CAPTION + point * (height + CAPTION + GAP) + row * PATCH_PIXELS
    x = GAP + left + column * PATCH_PIXELS
    return float(np.asarray(picture.crop((x + 2, top + 2, x + PATCH_PIXELS - 2, top + PATCH_PIXELS - 2))).mean())


@pytest.mark.parametrize("size", [(40, 50), (100, 30), (1, 1), (7, 300), (300, 50)])
def test_the_picture_has_a_row_for_each_prune_point_with_base_view_grid_and_newlines(size: tuple[int, int]) -> None:
    place = TILER.placement(*size)
    rows, columns = (stop - start for start, stop in (place.patch_rows, place.patch_columns))
    overlay = draw_overlay(picture(*size), TILER, [range(9), range(4), []], [1, 3, 5])
    height = max(SIDE, rows) * PATCH_PIXELS
    if rows and columns:
        assert overlay.width == 2 * GAP + SIDE * PATCH_PIXELS + GAP + columns * PATCH_PIXELS + NEWLINE_WIDTH
    else:
        assert overlay.width == 2 * GAP + SIDE * PATCH_PIXELS
        height = SIDE * PATCH_PIXELS
    assert overlay.height == 3 * (CAPTION + height + GAP) + GAP


def test_kept_patches_are_brighter_than_dropped_ones() -> None:
    """In the base view and in the grid; on a plain grey image the drawing alone makes the difference."""
    grey = np.full((56, 56, 3), 150, np.uint8)
    tokens = TILER.token_count(56, 56)
    kept = [token for token in range(tokens) if token % 3 == 0]
    overlay = draw_overlay(grey, TILER, [kept, kept[:5]], [1, 4])
    columns, height = 2 * SIDE, 2 * SIDE * PATCH_PIXELS
    left = SIDE * PATCH_PIXELS + GAP
    for point, numbers in enumerate((set(kept), set(kept[:5]))):
        for token in range(SIDE * SIDE):
            light = patch(overlay, point, token // SIDE, token % SIDE, height=height)
            assert (light > 140) == (token in numbers)
            assert (light < 60) == (token not in numbers)
        for row in range(columns):
            for column in range(columns):
                if SIDE in (row, column) or SIDE - 1 in (row, column):
                    continue  # the lines between tiles run here
                token = SIDE * SIDE + row * (columns + 1) + column
                light = patch(overlay, point, row, column, left, height)
                assert (light > 140) == (token in numbers), (row, column)


def test_newline_tokens_are_marked_at_the_end_of_their_row() -> None:
    grey = np.full((56, 56, 3), 150, np.uint8)
    columns = 2 * SIDE
    second_newline = SIDE * SIDE + 2 * (columns + 1) - 1
    overlay = draw_overlay(grey, TILER, [[second_newline]], [1])
    x = GAP + SIDE * PATCH_PIXELS + GAP + columns * PATCH_PIXELS + NEWLINE_WIDTH // 2
    colours = [overlay.getpixel((x, GAP + CAPTION + row * PATCH_PIXELS + PATCH_PIXELS // 2)) for row in range(columns)]
    assert colours[1] != colours[0]
    assert colours[0] == colours[2] == colours[-1]


def test_an_image_that_is_all_kept_looks_like_itself() -> None:
    photograph = picture(56, 56)
    overlay = draw_overlay(photograph, TILER, [range(TILER.token_count(56, 56))], [1])
    side = SIDE * PATCH_PIXELS
    base = overlay.crop((GAP, GAP + CAPTION, GAP + side, GAP + CAPTION + side))
    truth = np.asarray(Image.fromarray(photograph).resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    inner = np.arange(side) % PATCH_PIXELS
    inside = np.outer((inner > 0) & (inner < PATCH_PIXELS - 1), (inner > 0) & (inner < PATCH_PIXELS - 1))
    assert np.abs(np.asarray(base).astype(float) - truth)[inside].max() <= 1
