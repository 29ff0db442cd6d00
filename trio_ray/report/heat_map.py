"""Where in pictures tokens are kept: shares by place in the base view and in the tiles, summed over many samples."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trio_ray.model.patch_grid import PatchGrid

CELLS = 16
"""Rows and columns of a map."""

NEWLINES = 64
"""The place of newline tokens among the tiles of a grid, which are fewer."""

Ints = NDArray[np.int64]


@dataclass
class KeptPlaces:
    """Sums over the images of samples, a prune point each.

    Attributes:
        base_kept, base_all: (points, cells, cells) kept tokens and all tokens of the base view.
        grid_kept, grid_all: the same of the tiles, over the picture from edge to edge.
        newlines_kept, newlines_all: (points,).
        tiles: by the grid's tile rows and columns, the sums for that shape.
    """

    points: int
    base_kept: Ints = field(init=False)
    base_all: Ints = field(init=False)
    grid_kept: Ints = field(init=False)
    grid_all: Ints = field(init=False)
    newlines_kept: Ints = field(init=False)
    newlines_all: Ints = field(init=False)
    tiles: dict[tuple[int, int], TileSums] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.points, CELLS, CELLS)
        self.base_kept, self.base_all = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.grid_kept, self.grid_all = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.newlines_kept, self.newlines_all = np.zeros(self.points, np.int64), np.zeros(self.points, np.int64)
        points = self.points
        self.tiles = defaultdict(lambda: TileSums(points))

    def add(self, grid: PatchGrid, kept: list[Ints]) -> None:
        """Count images of one grid.

        Args:
            grid: where their tokens lie.
            kept: per prune point, numbers of kept tokens within their image, of all these images one after the other.
        """
        cells = _cells_of(grid)
        shape = self.tiles[grid.tiles]
        for point, numbers in enumerate(kept):
            counts = np.bincount(numbers, minlength=grid.tokens)
            cells.spread(counts, self.base_kept[point], self.grid_kept[point])
            self.newlines_kept[point] += counts[cells.newlines].sum()
            shape.kept[point] += np.bincount(cells.tile, counts, minlength=shape.room).astype(np.int64)[: shape.room]

    def add_all(self, grid: PatchGrid, images: int) -> None:
        """Count all tokens of so many images of one grid."""
        cells = _cells_of(grid)
        shape = self.tiles[grid.tiles]
        shape.images += images
        counts = np.full(grid.tokens, images, np.int64)
        for point in range(self.points):
            cells.spread(counts, self.base_all[point], self.grid_all[point])
            self.newlines_all[point] += counts[cells.newlines].sum()
            shape.all[point] += np.bincount(cells.tile, counts, minlength=shape.room).astype(np.int64)[: shape.room]


@dataclass
class TileSums:
    """Sums for one shape of grid: place 0 is the base view, the tiles follow row by row; newlines are not counted."""

    points: int
    images: int = 0
    kept: Ints = field(init=False)
    all: Ints = field(init=False)
    room: int = NEWLINES + 1

    def __post_init__(self) -> None:
        self.kept, self.all = (np.zeros((self.points, self.room), np.int64) for _ in range(2))

    def shares(self, point: int, shape: tuple[int, int]) -> tuple[float, NDArray[np.float64]]:
        """Share of kept tokens of the base view, and (rows, columns) of each tile."""
        share = self.kept[point] / np.maximum(self.all[point], 1)
        return float(share[0]), share[1 : 1 + shape[0] * shape[1]].reshape(shape)


@dataclass(frozen=True)
class _Cells:
    """For the tokens of a grid the cells of the maps that they lie in, and for each token its tile.

    Where there are fewer patches than cells a patch lies in several of them: `base` and `grid` are (2, pairs), tokens
    above and cells below.
    """

    base: Ints
    grid: Ints
    newlines: NDArray[np.bool_]
    tile: Ints

    def spread(self, counts: Ints, base: Ints, grid: Ints) -> None:
        """Add the counts (tokens,) to the maps."""
        for (tokens, cells), sums in ((self.base, base), (self.grid, grid)):
            added = np.bincount(cells, counts[tokens], minlength=CELLS * CELLS)
            sums += added.astype(np.int64).reshape(CELLS, CELLS)


@lru_cache(maxsize=256)
def _cells_of(grid: PatchGrid) -> _Cells:
    first = grid.side**2
    newlines = np.zeros(grid.tokens, np.bool_)
    newlines[first + grid.columns :: grid.columns + 1] = True
    row, column = np.divmod(np.arange(grid.rows * (grid.columns + 1)), grid.columns + 1)
    tile_row, tile_column = (grid.patch_rows[0] + row) // grid.side, (grid.patch_columns[0] + column) // grid.side
    tile = np.concatenate([np.zeros(first, np.int64), 1 + tile_row * grid.tiles[1] + tile_column])
    tile[newlines] = NEWLINES
    base = _pairs(0, grid.side, grid.side, grid.side)
    return _Cells(base, _pairs(first, grid.rows, grid.columns, grid.columns + 1), newlines, np.minimum(tile, NEWLINES))


def _pairs(first: int, rows: int, columns: int, stride: int) -> Ints:
    """(2, pairs): token and cell of every patch of a view; the patch (y, x) is token first + y * stride + x."""
    finer = [max(1, -(-CELLS // max(count, 1))) for count in (rows, columns)]
    y, x = np.divmod(np.arange(rows * finer[0] * columns * finer[1]), max(columns * finer[1], 1))
    cell = (y * CELLS // max(rows * finer[0], 1)) * CELLS + x * CELLS // max(columns * finer[1], 1)
    return np.stack([first + (y // finer[0]) * stride + x // finer[1], cell])


def heat_png(share: NDArray[np.float64], most: float) -> str:
    """A map of shares as a data URI, one pixel a cell; `most` is the share that gets the lightest colour."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.nan_to_num(share) / max(most, 1e-12), bytes=True)[..., :3]
    colours[np.isnan(share)] = 128
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
