"""Pictures of stored samples, drawn from what the cache holds of them and from their input."""

from __future__ import annotations

from typing import Any

from PIL import Image

from trio_ray.cache.input_samples import Reread, read_again
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.model.patch_grid import PatchGrid, kept_of_image
from trio_ray.report.overlay import Caption, draw_sample
from trio_ray.source.images import decode_image
from trio_ray.source.sample import Sample

IMAGE_MARK = "<image>"


def pictures(cache: PrunedCache, row: dict[str, Any], how: Reread) -> list[Image.Image]:
    """For each image of a sample: the image, and what each prune point keeps of it, with question and answer.

    Args:
        cache: that the row is of; of any level.
        row: as `PrunedCache.row` gives it.
        how: the input is read again.

    Raises:
        InputChanged, StoreError, ConfigError: see `read_again`.
    """
    (sample,) = read_again(cache, [row], how)
    max_pixels = cache.dataset.identity["source"]["max_pixels"]
    caption = Caption(row["key"], question_of(row, sample), row["answer"])
    layers = cache.method.schedule.prune_points
    return [
        draw_sample(
            decode_image(data, max_pixels),
            PatchGrid.of_image(image),
            [kept_of_image(row["images"], point, number) for point in row["kept"]],
            layers,
            caption,
        )
        for number, (data, image) in enumerate(zip(sample.images, row["images"], strict=True))
    ]


def question_of(row: dict[str, Any], sample: Sample | None = None) -> str:
    """What was asked: the sample's last turn where its input could be read, else the whole prompt."""
    text = sample.turns[-1].text if sample is not None and sample.turns else row["prompt"]
    return " ".join(text.replace(IMAGE_MARK, " ").split())
