"""Tiles and token maps equal what transformers makes of the same image."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaNextConfig, LlavaNextModel, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.model.corpus import picture
from tests.tiny_models import PATCH, PINPOINTS, TILE
from trio_ray.errors import ModelError
from trio_ray.model.tiles import NEWLINE, Tiler

SIZES = [
    (1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (7, 300), (300, 50), (6, 300), (300, 6), (50, 2500), (2500, 50),
    (10, 500),
    (336, 336), (336, 672), (672, 336), (672, 672), (336, 1008), (1008, 336), (335, 337), (337, 335), (671, 673),
    (14, 14),
    (28, 28), (27, 29), (28, 56), (56, 28), (84, 28), (28, 84), (29, 57), (13, 40), (97, 101), (480, 640), (640, 480),
    (1080, 1920), (600, 800), (333, 500), (500, 333), (375, 500), (427, 640), (612, 612), (1000, 1001), (200, 201),
    (99, 500),
    (500, 99), (150, 151), (61, 67), (67, 61), (31, 127), (127, 31), (256, 255), (720, 1280), (400, 300), (18, 900),
    (900, 19),
]  # fmt: skip
PHOTOGRAPHS = ["astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina"]
BIG = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
PROCESSORS = {
    "tiny": (LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
    ), PATCH),
    "llava_next": (LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=BIG
    ), 14),
}  # fmt: skip


def check(name: str, pixels: NDArray[np.uint8]) -> None:
    """Pixel values of all tiles, and the number of tokens, against transformers."""
    processor, patch = PROCESSORS[name]
    tiler = Tiler.from_processor(processor, patch)
    truth = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    tiles = tiler.tiles(pixels)
    assert tiles.dtype == torch.uint8
    ours = tiler.normalise(tiles)
    assert ours.shape == truth.shape
    assert float((ours - truth).abs().max()) <= 1e-6


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_tiny_tiles_equal_the_processors_pixel_values(size: tuple[int, int]) -> None:
    check("tiny", picture(*size))


@pytest.mark.parametrize("size", SIZES[::3], ids=lambda size: f"{size[0]}x{size[1]}")
def test_real_size_tiles_equal_the_processors_pixel_values(size: tuple[int, int]) -> None:
    check("llava_next", picture(*size))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_tiles_of_photographs_equal_the_processors_pixel_values(name: str) -> None:
    photograph = getattr(skimage.data, name)()
    check("llava_next", photograph)
    check("tiny", photograph)


@pytest.mark.parametrize("name", PROCESSORS)
def test_token_counts_equal_the_processors(name: str) -> None:
    """Of every size above, of photographs, and of many more: no pixels are needed for this."""
    image_processor, patch = PROCESSORS[name]
    tiler = Tiler.from_processor(image_processor, patch)
    processor = object.__new__(LlavaNextProcessor)  # its counting needs settings alone, no tokenizer
    processor.image_processor, processor.patch_size = image_processor, patch
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "default", 1
    random = np.random.default_rng(0)
    sizes = SIZES + [tuple(map(int, size)) for size in random.integers(1, 1500, (300, 2))]
    for height, width in sizes:
        truth = (
            processor._get_number_of_features(height, width, tiler.tile, tiler.tile) - 1
        )  # the class token is dropped
        assert tiler.token_count(height, width) == truth, (height, width)
        assert len(tiler.token_map(height, width)) == truth


@pytest.mark.parametrize("name", PROCESSORS)
def test_token_map_equals_the_models_own_packing_of_features(name: str) -> None:
    """Features whose value is their number pass through `pack_image_features`; what comes out is the token map."""
    image_processor, patch = PROCESSORS[name]
    tiler = Tiler.from_processor(image_processor, patch)
    config = LlavaNextConfig(image_grid_pinpoints=[list(point) for point in tiler.pinpoints])
    config.vision_config.image_size, config.vision_config.patch_size = tiler.tile, patch
    model = object.__new__(LlavaNextModel)  # packing needs the configuration alone
    torch.nn.Module.__init__(model)
    model.config = config
    for height, width in SIZES:
        rows, columns = tiler.placement(height, width).grid
        tiles = 1 + rows * columns
        numbers = torch.arange(tiles * tiler.side**2, dtype=torch.float64).view(tiles, -1, 1)
        packed, lengths = model.pack_image_features(
            [numbers], torch.tensor([[height, width]]), "default", image_newline=torch.tensor([float(NEWLINE)]).double()
        )
        truth = packed[0] if isinstance(packed, (list, tuple)) else packed
        assert tiler.token_map(height, width).tolist() == truth[:, 0].long().tolist(), (height, width)
        assert int(lengths[0]) == tiler.token_count(height, width)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_every_size_has_a_map_that_uses_each_feature_at_most_once(height: int, width: int) -> None:
    tiler = Tiler.from_processor(*PROCESSORS["llava_next"])
    token_map = tiler.token_map(height, width)
    features = token_map[token_map != NEWLINE]
    rows, columns = tiler.placement(height, width).grid
    assert len(features.unique()) == len(features)
    assert int(features.max()) < (1 + rows * columns) * tiler.side**2
    assert torch.equal(features[: tiler.side**2], torch.arange(tiler.side**2))


@pytest.mark.parametrize(
    "settings",
    [{"do_resize": False}, {"do_normalize": False}, {"do_rescale": False}, {"crop_size": {"height": 24, "width": 28}}],
)
def test_a_processor_that_does_something_else_is_refused(settings: dict[str, object]) -> None:
    processor = LlavaNextImageProcessorPil(
        **{"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "image_grid_pinpoints": PINPOINTS}
        | settings
    )
    with pytest.raises(ModelError, match="image processor"):
        Tiler.from_processor(processor, 7)


def test_pinpoints_that_are_no_whole_number_of_tiles_are_refused() -> None:
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [42, 28]]
    )
    with pytest.raises(ModelError, match="42"):
        Tiler.from_processor(processor, 7)


def test_patches_that_do_not_divide_the_tile_are_refused() -> None:
    with pytest.raises(ModelError, match="patches of 9"):
        Tiler.from_processor(PROCESSORS["tiny"][0], 9)
