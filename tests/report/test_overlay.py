"""The picture of what was kept."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.model.corpus import picture
from tests.tiny_models import PATCH, PINPOINTS, TILE
from trio_ray.model.patch_grid import PatchGrid
from trio_ray.model.tiles import Tiler
from trio_ray.report.overlay import GAP, KEPT, Caption, draw_kept, draw_sample

TILER = Tiler(
    tile=TILE, patch=PATCH, pinpoints=tuple((high, wide) for high, wide in PINPOINTS), resample=3, mean=(0.5,) * 3,
    std=(0.5,) * 3, scale=1 / 255,
)  # fmt: skip
SIDE = TILER.side
PIXELS = 20


def grid_of(height: int, width: int) -> PatchGrid:
    rows, columns = TILER.placement(height, width).grid
    tokens = TILER.token_count(height, width)
    image = {"height": height, "width": width, "grid_rows": rows, "grid_columns": columns, "tokens": tokens}
    return PatchGrid.of_image(image)


def inside(drawn: Image.Image, row: int, column: int, left: int = 0) -> float:
    """Mean brightness of a patch's inside."""
    x, y = left + column * PIXELS, row * PIXELS
    return float(np.asarray(drawn.crop((x + 3, y + 3, x + PIXELS - 3, y + PIXELS - 3))).mean())


@pytest.mark.parametrize("size", [(40, 50), (100, 30), (1, 1), (7, 300), (300, 50), (56, 56)])
def test_the_places_of_tokens_follow_from_what_a_row_holds(size: tuple[int, int]) -> None:
    """The model's own tiles say the same."""
    place, grid = TILER.placement(*size), grid_of(*size)
    assert (grid.side, grid.patch_rows, grid.patch_columns) == (SIDE, place.patch_rows, place.patch_columns)
    features = TILER.token_map(*size).tolist()
    newlines = [number for number, feature in enumerate(features) if feature < 0]
    masks = grid.masks(newlines)
    assert masks.newlines.all()
    assert not masks.base.any()
    assert not masks.grid.any()


def test_an_image_that_cannot_have_so_many_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot have 3 tokens"):
        PatchGrid.of_image({"height": 56, "width": 56, "grid_rows": 2, "grid_columns": 2, "tokens": 3})


def test_a_picture_has_a_line_for_each_prune_point_under_question_and_legend() -> None:
    grid = grid_of(56, 56)
    caption = Caption("a key", "What is this? " * 30, "a cat")
    one, two, four = (
        draw_sample(picture(56, 56), grid, [range(3)] * points, range(points), caption).height for points in (1, 2, 4)
    )
    assert four - one == 3 * (two - one) > 3 * 2 * SIDE * 4


def test_kept_patches_are_brighter_than_dropped_ones_which_can_still_be_seen() -> None:
    """In the base view and in the grid; on a plain grey image the drawing alone makes the difference."""
    grid = grid_of(56, 56)
    kept = {token for token in range(grid.tokens) if token % 3 == 0}
    drawn = draw_kept(np.full((56, 56, 3), 150, np.uint8), grid, grid.masks(kept), PIXELS)
    for token in range(SIDE * SIDE):
        light = inside(drawn, token // SIDE, token % SIDE)
        assert (light > 140) if token in kept else (60 < light < 110)
    left = SIDE * PIXELS + GAP
    for row in range(2 * SIDE):
        for column in range(2 * SIDE):
            token = SIDE * SIDE + row * (2 * SIDE + 1) + column
            light = inside(drawn, row, column, left)
            assert (light > 125) if token in kept else (60 < light < 125), (row, column)


def test_newline_tokens_are_marked_at_the_end_of_their_row() -> None:
    grid = grid_of(56, 56)
    second = SIDE * SIDE + 2 * (2 * SIDE + 1) - 1
    drawn = draw_kept(np.full((56, 56, 3), 150, np.uint8), grid, grid.masks([second]), PIXELS)
    colours = [drawn.getpixel((drawn.width - 2, row * PIXELS + PIXELS // 2)) for row in range(2 * SIDE)]
    assert [colour == KEPT for colour in colours] == [row == 1 for row in range(2 * SIDE)]


def test_an_image_that_is_all_kept_looks_like_itself() -> None:
    photograph, grid = picture(56, 56), grid_of(56, 56)
    drawn = draw_kept(photograph, grid, grid.masks(range(grid.tokens)), PIXELS)
    side = SIDE * PIXELS
    base = np.asarray(drawn.crop((0, 0, side, side))).astype(float)
    truth = np.asarray(Image.fromarray(photograph).resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    inner = np.arange(side) % PIXELS
    within = np.outer((inner > 0) & (inner < PIXELS - 1), (inner > 0) & (inner < PIXELS - 1))
    assert np.abs(base - truth)[within].max() <= 1
