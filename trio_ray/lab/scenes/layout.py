"""Where things are in a scene: image size, objects with a letter each, and small tags with a word."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trio_ray.lab.scenes.families import MAX_OBJECTS, SHAPES, Family
from trio_ray.lab.scenes.views import PINPOINTS, View, tile_view

Split = Literal["train", "validation", "test"]

MIN_SIDE, MAX_SIDE, MAX_ASPECT = 80, 640, 3.0

# Lengths in tile pixels (see views.py).
TAG_SIZE = (31.0, 17.0)
TAG_CAP_HEIGHT = 8.5
# A tag's word is fine detail only where the tiles are this much finer than the base view.
TAG_MIN_ZOOM = 1.7
# Height of a letter over its shape's diameter: what the shape has room for.
LETTER_SHARE = {
    "circle": 0.48,
    "square": 0.52,
    "triangle": 0.36,
    "star": 0.36,
    "diamond": 0.42,
    "cross": 0.38,
    "heart": 0.42,
    "hexagon": 0.5,
    "arrow": 0.42,
    "house": 0.46,
    "bar": 0.46,
    "flower": 0.46,
    "drop": 0.42,
    "shield": 0.46,
}


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A coloured shape with a letter on it. Centre and diameter are in image pixels."""

    shape: str
    color: str
    letter: str
    x: float
    y: float
    diameter: float

    @property
    def letter_height(self) -> float:
        """Height of the capital letter, in image pixels."""
        return self.diameter * LETTER_SHARE[self.shape]


@dataclass(frozen=True, slots=True)
class Tag:
    """A small plate with a word. Centre, size and capital height are in image pixels."""

    tone: str
    word: str
    x: float
    y: float
    width: float
    height: float
    cap_height: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that is true of a scene. Later objects are drawn over earlier ones."""

    seed: int
    split: Split
    family: Family
    width: int
    height: int
    objects: tuple[SceneObject, ...]
    tags: tuple[Tag, ...]

    @property
    def view(self) -> View:
        """How the tiles of the bundled model show this scene."""
        return tile_view(self.width, self.height)


def generator(split: str, seed: int, purpose: str) -> np.random.Generator:
    """The random stream of one purpose in one scene.

    The split is hashed into the stream's key, so no seed of one split ever gives a scene of another.
    """
    key = hashlib.blake2b(f"{split}/{purpose}".encode(), digest_size=16).digest()
    return np.random.default_rng([int.from_bytes(key, "big"), seed])


def compose(seed: int, split: Split, family: Family = SHAPES) -> Scene:
    """Lay out scene number `seed` (0 or more) of a split."""
    rng = generator(split, seed, "layout")
    width, height = _image_size(rng, family.grid_shares)
    view = tile_view(width, height)
    pitch = rng.uniform(*family.cell)
    cells = (max(2, round(view.width / pitch)), max(2, round(view.height / pitch)))
    tag_count = int(rng.choice(3, p=(0.25, 0.5, 0.25))) if view.base_scale * TAG_MIN_ZOOM <= 1 else 0
    count = int(rng.integers(3, min(MAX_OBJECTS, cells[0] * cells[1] - tag_count) + 1))
    places = _place(rng, view, family, cells, count, tag_count)
    return Scene(
        seed=seed,
        split=split,
        family=family,
        width=width,
        height=height,
        objects=_objects(rng, family, [_Disc(*(length / view.scale for length in disc)) for disc in places[:count]]),
        tags=_tags(rng, family, places[count:], view.scale),
    )


# --- image size ---


def _image_size(rng: np.random.Generator, shares: tuple[float, ...]) -> tuple[int, int]:
    """A width and a height in pixels, such that every tile grid gets its share."""
    wanted = PINPOINTS[int(rng.choice(len(PINPOINTS), p=shares))]
    while True:
        width, height = _propose_size(rng, wanted)
        inside = min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE
        if inside and max(width, height) <= MAX_ASPECT * min(width, height) and tile_view(width, height).grid == wanted:
            return width, height


def _propose_size(rng: np.random.Generator, grid: tuple[int, int]) -> tuple[int, int]:
    if grid[0] == grid[1]:
        long, aspect = _log_uniform(rng, 113, MAX_SIDE), 2.0 ** rng.uniform(-1, 1)
        return (round(long), round(long / aspect)) if aspect > 1 else (round(long * aspect), round(long))
    if max(grid) == 336:
        short, long_side = _log_uniform(rng, MIN_SIDE, 290), rng.uniform(2, MAX_ASPECT)
        sides = round(short), round(short * long_side)
    elif rng.random() < 0.5:  # exactly 2:1
        short_side = round(_log_uniform(rng, MIN_SIDE, MAX_SIDE / 2))
        sides = short_side, 2 * short_side
    else:  # so small that a 2 x 2 grid would show nothing more
        first, second = rng.integers(MIN_SIDE, 2 * MIN_SIDE, size=2)
        sides = int(min(first, second)), int(max(first, second))
    return sides if grid[0] > grid[1] else (sides[1], sides[0])


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


# --- places, in tile pixels ---


class _Disc(tuple[float, float, float]):
    """Centre x, centre y, diameter."""

    def __new__(cls, x: float, y: float, diameter: float) -> _Disc:
        return super().__new__(cls, (x, y, diameter))


def _place(
    rng: np.random.Generator, view: View, family: Family, cells: tuple[int, int], count: int, tag_count: int
) -> list[_Disc]:
    """Discs for `count` objects, then for `tag_count` tags, on a jittered grid; some objects overlap a little."""
    pitch = (view.width / cells[0], view.height / cells[1])
    chosen = rng.permutation(cells[0] * cells[1])
    if family.clustered:
        chosen = _nearest_first(chosen, cells)
    chosen = chosen[: count + tag_count]
    centers = [((cell % cells[0] + 0.5) * pitch[0], (cell // cells[0] + 0.5) * pitch[1]) for cell in chosen]
    diameters = np.clip(
        rng.uniform(0.66, 0.96, size=count) * min(pitch), family.diameter[0], min(family.diameter[1], min(pitch))
    )
    sizes = [*diameters, *[TAG_SIZE[0]] * tag_count]
    for spill in (0.4, 0.4, 0.3, 0.3, 0.2, 0.1, 0.0):
        discs = [_jittered(rng, center, size, pitch, view, spill) for center, size in zip(centers, sizes, strict=True)]
        if spill == 0.0 or _is_clear(discs, count):
            break
    return discs


def _nearest_first(order: NDArray[np.int64], cells: tuple[int, int]) -> NDArray[np.int64]:
    """Cells by their distance from the first one, equal distances in the order given: objects stand together."""
    columns, rows = order % cells[0], order // cells[0]
    distance = np.hypot(columns - columns[0], rows - rows[0])
    return order[np.argsort(distance, kind="stable")]


def _jittered(
    rng: np.random.Generator,
    center: tuple[float, float],
    size: float,
    pitch: tuple[float, float],
    view: View,
    spill: float,
) -> _Disc:
    """Move a disc inside its cell, and over the cell's border by `spill` of the cell."""
    place = []
    for middle, side, length in zip(center, pitch, (view.width, view.height), strict=True):
        reach = max(0.0, (side - size) / 2) + spill * side
        inset = size / 2 + 1
        place.append(float(np.clip(middle + rng.uniform(-reach, reach), inset, max(inset, length - inset))))
    return _Disc(place[0], place[1], float(size))


def _is_clear(discs: list[_Disc], count: int) -> bool:
    """Whether overlaps leave every letter free (it reaches 0.3 diameters from its centre) and touch no tag."""
    for upper, (x, y, size) in enumerate(discs):
        for lower in range(upper):
            other_x, other_y, other_size = discs[lower]
            gap = math.hypot(x - other_x, y - other_y)
            room = size / 2 + (0.32 if upper < count else 0.5) * other_size
            if gap < room:
                return False
    return True


# --- what is at a place ---


def _objects(rng: np.random.Generator, family: Family, discs: list[_Disc]) -> tuple[SceneObject, ...]:
    """Shapes and colours from a small palette, so that they repeat; letters that do not."""
    shapes = rng.permutation(family.shapes)[: rng.integers(2, len(family.shapes) + 1)]
    colors = rng.permutation(list(family.colors))[: rng.integers(2, len(family.colors) + 1)]
    letters = rng.permutation(family.letters)
    return tuple(
        SceneObject(str(rng.choice(shapes)), str(rng.choice(colors)), str(letters[i]), *disc)
        for i, disc in enumerate(discs)
    )


def _tags(rng: np.random.Generator, family: Family, discs: list[_Disc], scale: float) -> tuple[Tag, ...]:
    """Tags of different tones, so that the tone names one."""
    tones, words = rng.permutation(list(family.tag_tones)), rng.permutation(family.tag_words)
    lengths = (TAG_SIZE[0] / scale, TAG_SIZE[1] / scale, TAG_CAP_HEIGHT / scale)
    return tuple(
        Tag(str(tones[i]), str(words[i]), disc[0] / scale, disc[1] / scale, *lengths) for i, disc in enumerate(discs)
    )
