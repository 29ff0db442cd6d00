"""Workloads: the same for a seed, of the sizes that their sources have, ready for the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trio_ray.config import ModelConfig
from trio_ray.errors import ModelError
from trio_ray.lab.image_sizes import COCO_COUNTS, WEB_RANGE, WEB_SHAPES, draw_size
from trio_ray.lab.workload import TEMPLATE_TOKENS, make_workload, synthesise
from trio_ray.model.loading import load_processor, read_model_config
from trio_ray.model.replica import Replica
from trio_ray.model.shapes import write_model
from trio_ray.model.tiles import Tiler
from trio_ray.source.images import decode_image


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    """A replica of the tiny shapes."""
    folder = write_model(tmp_path_factory.mktemp("tiny"), "tiny")
    return Replica.load(ModelConfig(name=str(folder), dtype="float32"))


def test_pope_asks_six_questions_about_each_image(tiny: Replica) -> None:
    workload = make_workload(tiny, "pope", 14)
    hashes = [sample.images[0].hash for sample in workload.samples]
    assert workload.images == 3
    assert [hashes.index(digest) for digest in hashes] == [0] * 6 + [6] * 6 + [12] * 2
    assert len({sample.prompt for sample in workload.samples}) == 14
    assert workload.tiles_ms > 0


def test_web_asks_once_about_each_of_its_images(tiny: Replica) -> None:
    workload = make_workload(tiny, "web", 20)
    assert workload.images == 20
    assert len({sample.rows for sample in workload.samples}) > 10
    described = workload.describe()
    assert described["rows"] == pytest.approx(np.mean([sample.rows for sample in workload.samples]))
    assert 1 < described["tiles"] <= 5  # type: ignore[operator]


def test_a_seed_gives_the_same_samples_and_another_seed_others(tiny: Replica) -> None:
    first, second, other = (make_workload(tiny, "web", 4, seed).samples for seed in (3, 3, 4))
    assert [(s.prompt_ids, s.images[0].hash) for s in first] == [(s.prompt_ids, s.images[0].hash) for s in second]
    assert [s.images[0].hash for s in first] != [s.images[0].hash for s in other]


def test_prompts_are_as_long_as_they_say(tiny: Replica) -> None:
    """The bundled tokenizer sees one token a word, so text rows are the words and its own short template."""
    for name in ("pope", "web"):
        for sample in make_workload(tiny, name, 12).samples:
            text = sample.rows - sample.image_tokens
            assert TEMPLATE_TOKENS < text < TEMPLATE_TOKENS + 77 + 10


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Tiler:
    """LLaVA-NeXT's own tiles."""
    folder = write_model(tmp_path_factory.mktemp("vicuna"), "vicuna-7b")
    return Tiler.from_processor(load_processor(folder)[1], read_model_config(folder).vision_config.patch_size)


def test_coco_sizes_are_like_coco(llava_next: Tiler) -> None:
    """Forty of the 41 fill the 2 x 2 grid, and nine in ten have 167,500 to 355,840 pixels, as COCO's train set has."""
    sizes = [size for size, count in COCO_COUNTS.items() for _ in range(count)]
    assert len(sizes) == 41
    assert sum(llava_next.placement(*size).grid == (2, 2) for size in sizes) == 40
    assert sum(167_500 <= height * width <= 355_840 for height, width in sizes) >= 0.9 * 41


def test_web_sizes_stay_in_their_range_and_use_every_grid(llava_next: Tiler) -> None:
    random = np.random.default_rng(0)
    sizes = [draw_size("web", random) for _ in range(2000)]
    assert sum(WEB_SHAPES.values()) == pytest.approx(1)
    assert all(WEB_RANGE[0] - 1 <= min(size) <= WEB_RANGE[1] + 1 for size in sizes)
    assert {llava_next.placement(*size).grid for size in sizes} == {(2, 2), (1, 2), (2, 1), (1, 3), (3, 1)}


def test_images_are_real_ones_of_their_size() -> None:
    pixels = decode_image(synthesise(123, 457, np.random.default_rng(0)), 10**6)
    assert pixels.shape == (123, 457, 3)
    assert pixels.std() > 20


def test_prompts_beyond_the_context_are_refused(tiny: Replica) -> None:
    short = replace(tiny, decoder=replace(tiny.decoder, context=100))
    with pytest.raises(ModelError, match="context is 100"):
        make_workload(short, "pope", 1)
