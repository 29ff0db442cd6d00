"""What is promised of the layout of scenes: seeded, split apart, of every size, and legible."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from transformers.image_processing_utils import select_best_resolution

from trio_ray.lab.scenes import Scene, compose
from trio_ray.lab.scenes.layout import MAX_ASPECT, MAX_SIDE, MIN_SIDE, TAG_CAP_HEIGHT
from trio_ray.lab.scenes.views import PINPOINTS, tile_view


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [compose(seed, "test") for seed in range(600)]


def test_a_seed_always_gives_the_same_scene(scenes: list[Scene]) -> None:
    assert [compose(seed, "test") for seed in range(50)] == scenes[:50]


def test_no_scene_of_one_split_is_in_another(scenes: list[Scene]) -> None:
    """The split is part of the random key, so equal seeds must give other scenes."""
    contents = {(s.width, s.height, s.objects) for s in scenes}
    for split in ("train", "validation"):
        others = [compose(seed, split) for seed in range(600)]
        assert all(scene.split == split for scene in others)
        assert not contents & {(s.width, s.height, s.objects) for s in others}


def test_every_tile_grid_has_its_share(scenes: list[Scene]) -> None:
    counts = Counter(scene.view.grid for scene in scenes)
    assert set(counts) == set(PINPOINTS)
    assert min(counts.values()) >= 0.08 * len(scenes)


def test_sizes_span_the_range(scenes: list[Scene]) -> None:
    sides = [side for scene in scenes for side in (scene.width, scene.height)]
    aspects = [scene.width / scene.height for scene in scenes]
    assert MIN_SIDE <= min(sides) < 90
    assert 560 < max(sides) <= MAX_SIDE
    assert 1 / MAX_ASPECT <= min(aspects) < 0.4
    assert 2.5 < max(aspects) <= MAX_ASPECT


@pytest.mark.parametrize("seed", range(0, 600, 7))
def test_the_view_is_the_one_that_the_model_takes(scenes: list[Scene], seed: int) -> None:
    scene = scenes[seed]
    wanted = select_best_resolution((scene.height, scene.width), [list(grid) for grid in PINPOINTS])
    assert tile_view(scene.width, scene.height).grid == tuple(wanted)


def test_scenes_hold_three_to_eight_objects_with_letters_of_their_own(scenes: list[Scene]) -> None:
    assert {len(scene.objects) for scene in scenes} == set(range(3, 9))
    for scene in scenes:
        assert len({item.letter for item in scene.objects}) == len(scene.objects)
        assert len({tag.tone for tag in scene.tags}) == len(scene.tags)


def test_some_objects_overlap_but_no_letter_is_covered(scenes: list[Scene]) -> None:
    overlaps = 0
    for scene in scenes:
        for upper, over in enumerate(scene.objects):
            for under in scene.objects[:upper]:
                gap = math.hypot(over.x - under.x, over.y - under.y)
                overlaps += gap < (over.diameter + under.diameter) / 2
                # Half the diagonal of a letter's box, a letter being about 0.8 as wide as high.
                assert gap >= over.diameter / 2 + 0.62 * under.letter_height * 0.9
    assert overlaps > 60


def test_tags_are_legible_in_the_tiles_and_not_in_the_base_view(scenes: list[Scene]) -> None:
    tags = [(scene, tag) for scene in scenes for tag in scene.tags]
    assert len(tags) > 300
    for scene, tag in tags:
        in_tiles = tag.cap_height * scene.view.scale
        assert in_tiles == pytest.approx(TAG_CAP_HEIGHT)
        assert in_tiles * scene.view.base_scale <= 5.0
