"""Where the tokens of an image lie in it, known from what a cache stores of the image: no model is needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trio_ray.model.tiles import unpadded


@dataclass(frozen=True)
class PatchGrid:
    """The tokens of one image, in order: the base view row by row, then the unpadded patches of the high-resolution
    grid row by row, each row ended by a newline token.

    Attributes:
        side: patches along a tile's side; the base view is one tile.
        tiles: rows and columns of high-resolution tiles.
        patch_rows, patch_columns: half-open ranges of the grid's patches that are left after unpadding.
    """

    side: int
    tiles: tuple[int, int]
    patch_rows: tuple[int, int]
    patch_columns: tuple[int, int]

    @classmethod
    def of_image(cls, image: Mapping[str, Any]) -> PatchGrid:
        """The grid of an image by its entry in `images` of a row (schemas/samples.table.json).

        Raises:
            ValueError: no tile has a side with which the image would have so many tokens.
        """
        tiles = (image["grid_rows"], image["grid_columns"])
        return _grid(image["height"], image["width"], tiles, image["tokens"])

    @property
    def rows(self) -> int:
        """Patch rows of the grid."""
        return self.patch_rows[1] - self.patch_rows[0]

    @property
    def columns(self) -> int:
        """Patch columns of the grid."""
        return self.patch_columns[1] - self.patch_columns[0]

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return self.side**2 + self.rows * (self.columns + 1)

    def masks(self, kept: Collection[int] | NDArray[np.int64]) -> KeptMasks:
        """Which tokens are among `kept`, numbers of tokens within this image."""
        mask = np.zeros(self.tokens, np.bool_)
        mask[np.asarray(kept if isinstance(kept, np.ndarray) else list(kept), np.int64)] = True
        first = self.side**2
        grid = mask[first:].reshape(self.rows, self.columns + 1)
        return KeptMasks(mask[:first].reshape(self.side, self.side), grid[:, :-1], grid[:, -1])


@dataclass(frozen=True)
class KeptMasks:
    """Which tokens of an image are kept.

    Attributes:
        base: (side, side) bool, the base view.
        grid: (rows, columns) bool, the high-resolution patches.
        newlines: (rows,) bool, the token that ends each row of them.
    """

    base: NDArray[np.bool_]
    grid: NDArray[np.bool_]
    newlines: NDArray[np.bool_]


def kept_of_image(images: list[dict[str, Any]], kept: Collection[int], number: int) -> list[int]:
    """Those of a sample's kept tokens that are of its image `number`, counted within the image."""
    start = sum(image["tokens"] for image in images[:number])
    stop = start + images[number]["tokens"]
    return [token - start for token in kept if start <= token < stop]


@lru_cache(maxsize=65536)
def _grid(height: int, width: int, tiles: tuple[int, int], tokens: int) -> PatchGrid:
    side = 1
    while side * side <= tokens:
        patch_rows, patch_columns = unpadded(tiles[0] * side, tiles[1] * side, height, width)
        grid = PatchGrid(side, tiles, patch_rows, patch_columns)
        if grid.tokens == tokens:
            return grid
        side += 1
    raise ValueError(f"an image of {width} x {height} pixels on {tiles} tiles cannot have {tokens} tokens")
