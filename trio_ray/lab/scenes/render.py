"""Draw a scene with Pillow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trio_ray.lab.scenes.families import SHAPES, Family
from trio_ray.lab.scenes.layout import Scene, SceneObject, Split, Tag, compose, generator

# Height of a capital over the font's size, for the font that Pillow carries.
CAP_SHARE = 0.7
# Below this side, shapes are drawn at twice the size and reduced: Pillow does not smooth polygons.
SMOOTH_BELOW = 400


@dataclass(frozen=True, slots=True)
class Rendering:
    """A drawn scene.

    `owners` (height, width) uint8 says which thing each pixel shows: 0 none, 1.. the scene's objects, then its tags.
    """

    scene: Scene
    image: Image.Image
    owners: NDArray[np.uint8]


def render_scene(seed: int, split: Split, family: Family = SHAPES) -> Rendering:
    """Compose and draw scene number `seed` of a split."""
    return render(compose(seed, split, family))


def render(scene: Scene) -> Rendering:
    """Draw a scene. The same scene gives the same pixels."""
    rng = generator(scene.split, scene.seed, "pixels")
    zoom = 2 if max(scene.width, scene.height) < SMOOTH_BELOW else 1
    image = _background(rng, scene.family.background, scene.width, scene.height)
    canvas = image.resize((scene.width * zoom, scene.height * zoom), Image.Resampling.BILINEAR) if zoom > 1 else image
    owners = Image.new("L", image.size)
    draw, draw_owner = ImageDraw.Draw(canvas), ImageDraw.Draw(owners)
    for number, item in enumerate(scene.objects, start=1):
        _draw_object(draw, item, scene.family, zoom, rng, scene.view.scale)
        draw_owner.polygon(outline(item.shape, item.x, item.y, item.diameter / 2), fill=number)
    for number, tag in enumerate(scene.tags, start=1 + len(scene.objects)):
        _draw_tag(draw, tag, scene.family, zoom)
        draw_owner.rectangle(_box(tag, 1), fill=number)
    return Rendering(scene, canvas.reduce(zoom) if zoom > 1 else canvas, np.asarray(owners))


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The polygon of a shape around (x, y)."""
    return [(x + radius * px, y + radius * py) for px, py in _unit_outline(shape)]


@lru_cache
def _unit_outline(shape: str) -> tuple[tuple[float, float], ...]:
    """A shape's polygon inside the unit circle."""

    def ring(corners: int, start: float, radii: tuple[float, ...] = (1.0,)) -> tuple[tuple[float, float], ...]:
        angles = (math.radians(start + 360 * i / corners) for i in range(corners))
        return tuple(
            (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)
        )

    arm = 0.42
    return {
        "circle": lambda: ring(48, 0),
        "square": lambda: ring(4, 45),
        "triangle": lambda: ring(3, -90),
        "diamond": lambda: tuple((0.78 * x, y) for x, y in ring(4, 0)),
        "star": lambda: ring(10, -90, (1.0, 0.46)),
        "cross": lambda: (
            *((-arm, -1.0), (arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm)),
            *((arm, 1.0), (-arm, 1.0), (-arm, arm), (-1.0, arm), (-1.0, -arm), (-arm, -arm)),
        ),
        "heart": _heart,
        "hexagon": lambda: ring(6, 0),
        "arrow": lambda: ((0.0, -1.0), (0.9, 0.0), (0.45, 0.0), (0.45, 0.88), (-0.45, 0.88), (-0.45, 0.0), (-0.9, 0.0)),
        "house": lambda: (
            (0.0, -1.0),
            (0.8, -0.3),
            (0.62, -0.3),
            (0.62, 0.78),
            (-0.62, 0.78),
            (-0.62, -0.3),
            (-0.8, -0.3),
        ),
        "bar": lambda: ((-0.86, -0.5), (0.86, -0.5), (0.86, 0.5), (-0.86, 0.5)),
        "flower": lambda: ring(60, -90, (1.0, 0.97, 0.88, 0.76, 0.66, 0.62, 0.66, 0.76, 0.88, 0.97)),
        "drop": lambda: ((0.0, -1.0), *((0.72 * x, 0.28 + 0.72 * y) for x, y in ring(24, -30)[:21])),
        "shield": lambda: ((-0.8, -0.6), (0.8, -0.6), (0.78, 0.0), (0.5, 0.55), (0.0, 1.0), (-0.5, 0.55), (-0.78, 0.0)),
    }[shape]()


def _heart() -> tuple[tuple[float, float], ...]:
    turns = (2 * math.pi * i / 40 for i in range(40))
    return tuple(
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5 - 0.1,
        )
        for t in turns
    )


def _background(rng: np.random.Generator, brightness: tuple[int, int], width: int, height: int) -> Image.Image:
    """A dull gradient between four corner colours, with grain."""
    corners = rng.integers(*brightness) + rng.integers(-28, 29, size=(2, 2, 3))
    gradient = Image.fromarray(corners.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    grain = np.frombuffer(rng.bytes(width * height * 3), np.uint8).reshape(height, width, 3)
    strength = int(rng.integers(2, 5))
    return Image.fromarray(np.asarray(gradient) + (grain >> (8 - strength - 1)))


def _draw_object(
    draw: ImageDraw.ImageDraw, item: SceneObject, family: Family, zoom: int, rng: np.random.Generator, scale: float
) -> None:
    x, y, radius = item.x * zoom, item.y * zoom, item.diameter / 2 * zoom
    red, green, blue = (int(np.clip(c + rng.integers(-10, 11), 0, 255)) for c in family.colors[item.color])
    edge = (red // 3, green // 3, blue // 3)
    points = outline(item.shape, x, y, radius)
    draw.polygon(points, fill=(red, green, blue))
    draw.line([*points, points[0]], fill=edge, width=max(1, round(zoom / scale)))
    ink = (250, 250, 250) if 0.3 * red + 0.59 * green + 0.11 * blue < 130 else (10, 10, 10)
    lift = {"triangle": 0.12, "heart": -0.08, "house": 0.14, "drop": 0.24}.get(item.shape, 0.0)
    _write(draw, item.letter, x, y + lift * radius, item.letter_height * zoom, ink)


def _draw_tag(draw: ImageDraw.ImageDraw, tag: Tag, family: Family, zoom: int) -> None:
    plate, ink = family.tag_tones[tag.tone]
    draw.rectangle(_box(tag, zoom), fill=plate)
    _write(draw, tag.word, tag.x * zoom, tag.y * zoom, tag.cap_height * zoom, ink)


def _box(tag: Tag, zoom: int) -> tuple[float, float, float, float]:
    half_width, half_height = tag.width / 2, tag.height / 2
    left, top, right, bottom = (
        tag.x - half_width,
        tag.y - half_height,
        tag.x + half_width,
        tag.y + half_height,
    )
    return (left * zoom, top * zoom, right * zoom, bottom * zoom)


def _write(
    draw: ImageDraw.ImageDraw, text: str, x: float, y: float, cap_height: float, ink: tuple[int, int, int]
) -> None:
    """Write text centred on (x, y), a little bold so that thin strokes survive the model's resizing."""
    font = _font(round(2 * cap_height / CAP_SHARE))
    draw.text((x, y), text, fill=ink, font=font, anchor="mm", stroke_width=cap_height * 0.03)


@lru_cache(maxsize=512)
def _font(half_pixels: int) -> ImageFont.FreeTypeFont:
    """Pillow's own scalable font, so that no font of the machine is needed."""
    font = ImageFont.load_default(max(2, half_pixels) / 2)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
