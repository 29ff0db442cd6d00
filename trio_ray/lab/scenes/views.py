"""How an any-resolution model with 112-pixel tiles sees an image: which grid, and how much finer than the base view.

Scenes are laid out in these *tile pixels*, so that a detail can be drawn just large enough for the tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

TILE = 112
PINPOINTS = ((112, 224), (224, 112), (224, 224), (336, 112), (112, 336))  # (height, width), in pixels


@dataclass(frozen=True, slots=True)
class View:
    """The high-resolution view of an image. `scale` is tile pixels per image pixel."""

    grid: tuple[int, int]
    scale: float
    width: float
    height: float

    @property
    def base_scale(self) -> float:
        """Base-view pixels per tile pixel, along the side that the (square, squashed) base view shrinks most."""
        return TILE / max(self.width, self.height)


@lru_cache(maxsize=4096)
def tile_view(width: int, height: int) -> View:
    """The view of a `width` x `height` image under LLaVA-NeXT's rule (arXiv 2310.03744, section on any resolution).

    That rule takes the grid that shows the most of the image's own pixels; among equals the smallest.
    """

    def shown(grid: tuple[int, int]) -> int:
        scale = min(grid[1] / width, grid[0] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    grid = max(PINPOINTS, key=lambda grid: (shown(grid), -grid[0] * grid[1]))
    scale = min(grid[1] / width, grid[0] / height)
    return View(grid, scale, width * scale, height * scale)
