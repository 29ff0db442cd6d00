"""Any-resolution tiling: which tiles an image becomes, and which feature each image token is.

Equal to `LlavaNextImageProcessorPil` and `LlavaNextModel.pack_image_features` of transformers, but it stays in uint8
(the device normalises) and knows every size before a pixel is decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trio_ray.errors import ModelError

NEWLINE = -1
"""Entry of a token map where the model's `image_newline` stands instead of a patch feature."""


@dataclass(frozen=True)
class Placement:
    """How an image of one size lies on its tiles.

    Attributes:
        grid: rows and columns of high-resolution tiles.
        resized: height and width, in pixels, of the image scaled onto the grid.
        top, left: offset, in pixels, of the scaled image on the grid.
        patch_rows, patch_columns: half-open ranges of the grid's patches that are left after unpadding.
    """

    grid: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    patch_rows: tuple[int, int]
    patch_columns: tuple[int, int]


@dataclass(frozen=True)
class Tiler:
    """Geometry and resampling of a model's tiles.

    Attributes:
        tile: side of a tile in pixels.
        patch: side of a vision patch in pixels.
        pinpoints: allowed grid resolutions, (height, width) in pixels.
        resample: PIL resampling filter.
        mean, std, scale: normalisation, `(pixel * scale - mean) / std` per channel.
    """

    tile: int
    patch: int
    pinpoints: tuple[tuple[int, int], ...]
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    @classmethod
    def from_processor(cls, processor: Any, patch: int) -> Tiler:
        """Read the settings of a `LlavaNextImageProcessor` of either backend.

        Raises:
            ModelError: the processor does something that these tiles do not (other crop than tile size, no
            resizing...).
        """
        try:
            return cls._read(processor, patch)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise ModelError(
                f"the image processor's settings cannot be read: {type(error).__name__}: {error}"
            ) from None

    @classmethod
    def _read(cls, processor: Any, patch: int) -> Tiler:
        size, crop = dict(processor.size), dict(processor.crop_size)
        tile = size.get("shortest_edge") or size.get("height")
        plain = processor.do_resize and processor.do_rescale and processor.do_normalize
        if not plain or tile is None or {crop.get("height"), crop.get("width")} != {tile} or tile % patch:
            raise ModelError(
                f"image processor with size {size}, crop {crop} and patches of {patch} is not supported: it must "
                "resize, rescale and normalise, and crop to the tile's own size"
            )
        pinpoints = tuple((int(height), int(width)) for height, width in processor.image_grid_pinpoints)
        if not pinpoints:
            raise ModelError("image_grid_pinpoints is empty, so no image has a grid")
        uneven = [point for point in pinpoints if point[0] % tile or point[1] % tile or min(point) < 1]
        if uneven:
            raise ModelError(f"image_grid_pinpoints {uneven} are no whole number of tiles of {tile} pixels")
        mean, std = (tuple(float(value) for value in values) for values in (processor.image_mean, processor.image_std))
        if len(mean) != 3 or len(std) != 3 or not all(math.isfinite(value) for value in mean + std) or min(std) <= 0:
            raise ModelError(f"image_mean {mean} and image_std {std} must be three numbers each, image_std above 0")
        return cls(
            tile=tile,
            patch=patch,
            pinpoints=pinpoints,
            resample=int(processor.resample),
            mean=mean,
            std=std,
            scale=float(processor.rescale_factor),
        )

    @property
    def side(self) -> int:
        """Patches along a tile's side."""
        return self.tile // self.patch

    @property
    def nominal_tokens(self) -> int:
        """Image tokens of the most views that an image can have, without the row ends: 2,880 for LLaVA-NeXT."""
        most = max(height * width for height, width in self.pinpoints) // self.tile**2
        return (1 + most) * self.side**2

    def placement(self, height: int, width: int) -> Placement:
        """Where an image of `height` x `width` pixels goes."""
        return _placement(self, height, width)

    def token_count(self, height: int, width: int) -> int:
        """Image tokens of an image of `height` x `width` pixels: base view, unpadded patches, one newline a row."""
        place = self.placement(height, width)
        rows, columns = (stop - start for start, stop in (place.patch_rows, place.patch_columns))
        return self.side**2 + rows * (columns + 1)

    def token_map(self, height: int, width: int) -> Tensor:
        """(tokens,) int64: for each image token its feature's number in (tiles * side * side), or NEWLINE.

        The base view comes first, row by row; then the grid's patches row by row, each row ended by a newline.
        """
        return _token_map(self, height, width)

    def tiles(self, image: NDArray[np.uint8]) -> Tensor:
        """Cut a (height, width, 3) uint8 image into (1 + rows * columns, 3, tile, tile) uint8, the base view first."""
        height, width = image.shape[:2]
        place = self.placement(height, width)
        picture = Image.fromarray(image)
        base = np.asarray(picture.resize((self.tile, self.tile), resample=self.resample))
        rows, columns = place.grid
        canvas = np.zeros((rows * self.tile, columns * self.tile, 3), np.uint8)
        new_height, new_width = place.resized
        canvas[place.top : place.top + new_height, place.left : place.left + new_width] = np.asarray(
            picture.resize((new_width, new_height), resample=self.resample)
        )
        grid = (
            canvas.reshape(rows, self.tile, columns, self.tile, 3).swapaxes(1, 2).reshape(-1, self.tile, self.tile, 3)
        )
        return torch.from_numpy(np.concatenate([base[None], grid]).transpose(0, 3, 1, 2).copy())

    def normalise(self, tiles: Tensor) -> Tensor:
        """(n, 3, tile, tile) uint8 on any device -> fp32, with the processor's arithmetic."""
        mean, std = _channels(self.mean, tiles.device), _channels(self.std, tiles.device)
        return (tiles.float() * self.scale - mean) / std


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(channels, 1, 1) fp32; kept, because bringing it to the device waits for all that the device is doing."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


@lru_cache(maxsize=65536)
def _placement(tiler: Tiler, height: int, width: int) -> Placement:
    best_height, best_width = _best_resolution(tiler.pinpoints, height, width)
    by_width, by_height = best_width / width, best_height / height
    if by_width < by_height:
        resized = (min(math.ceil(height * by_width), best_height), best_width)
    else:
        resized = (best_height, min(math.ceil(width * by_height), best_width))
    rows, columns = best_height // tiler.tile, best_width // tiler.tile
    patch_rows, patch_columns = unpadded(rows * tiler.side, columns * tiler.side, height, width)
    return Placement(
        grid=(rows, columns),
        resized=resized,
        top=(best_height - resized[0]) // 2,
        left=(best_width - resized[1]) // 2,
        patch_rows=patch_rows,
        patch_columns=patch_columns,
    )


def _best_resolution(pinpoints: tuple[tuple[int, int], ...], height: int, width: int) -> tuple[int, int]:
    """The resolution that keeps most of the image's pixels and, among those, wastes least."""

    def merit(resolution: tuple[int, int]) -> tuple[int, int]:
        high, wide = resolution
        scale = min(wide / width, high / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, -(high * wide - effective)

    return max(pinpoints, key=merit)


def unpadded(rows: int, columns: int, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Patch ranges that hold the image, by the rounding of transformers' `unpad_image`."""
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return (padding, rows - padding), (0, columns)
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return (0, rows), (padding, columns - padding)


@lru_cache(maxsize=4096)
def _token_map(tiler: Tiler, height: int, width: int) -> Tensor:
    side, place = tiler.side, tiler.placement(height, width)
    row = torch.arange(*place.patch_rows)[:, None]
    column = torch.arange(*place.patch_columns)[None]
    tile = 1 + (row // side) * place.grid[1] + column // side
    feature = tile * side * side + (row % side) * side + column % side
    newline = torch.full((feature.shape[0], 1), NEWLINE)
    return torch.cat([torch.arange(side * side), torch.cat([feature, newline], 1).flatten()])
