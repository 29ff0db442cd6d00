"""What is promised of drawing: the same pixels again, and everything that the scene says is to be seen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trio_ray.lab.scenes import Rendering, render_scene
from trio_ray.lab.scenes.families import SHAPES
from trio_ray.lab.scenes.render import outline


@pytest.fixture(scope="module")
def renderings() -> list[Rendering]:
    return [render_scene(seed, "test") for seed in range(60)]


def test_the_same_scene_gives_the_same_pixels(renderings: list[Rendering]) -> None:
    for rendering in renderings[:10]:
        again = render_scene(rendering.scene.seed, "test")
        assert again.image.tobytes() == rendering.image.tobytes()
        assert np.array_equal(again.owners, rendering.owners)


def test_the_image_has_the_scenes_size(renderings: list[Rendering]) -> None:
    for rendering in renderings:
        assert rendering.image.size == (rendering.scene.width, rendering.scene.height)
        assert rendering.image.mode == "RGB"
        assert rendering.owners.shape == rendering.image.size[::-1]


def test_four_fifths_of_every_object_is_visible(renderings: list[Rendering]) -> None:
    for rendering in renderings:
        for number, item in enumerate(rendering.scene.objects, start=1):
            alone = Image.new("L", rendering.image.size)
            ImageDraw.Draw(alone).polygon(outline(item.shape, item.x, item.y, item.diameter / 2), fill=1)
            whole = int(np.asarray(alone).sum())
            assert int((rendering.owners == number).sum()) >= 0.8 * whole


def test_objects_have_their_colour(renderings: list[Rendering]) -> None:
    """The commonest colour of an object's pixels is nearer to its own name's colour than to any other's."""
    palette = np.array(list(SHAPES.colors.values()))
    for rendering in renderings:
        pixels = np.asarray(rendering.image)
        for number, item in enumerate(rendering.scene.objects, start=1):
            seen, counts = np.unique(pixels[rendering.owners == number], axis=0, return_counts=True)
            nearest = np.abs(palette - seen[counts.argmax()].astype(int)).sum(axis=1).argmin()
            assert list(SHAPES.colors)[nearest] == item.color
