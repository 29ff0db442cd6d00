"""Samples worth a look, with pictures where their input can be read again."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from trio_ray.cache.input_samples import InputChanged, Reread, read_items, read_what_is_there
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import ConfigError, PrefixError, StoreError
from trio_ray.model.patch_grid import PatchGrid, kept_of_image
from trio_ray.report.overlay import draw_patches
from trio_ray.report.pictures import question_of
from trio_ray.report.statistics import SampleNumbers
from trio_ray.source.images import decode_image
from trio_ray.source.rejection import Rejected
from trio_ray.source.sample import Sample

CELL = (210, 170)
"""Most width and height of one of the pictures beside each other, pixels."""
SPACE = 8
QUALITY = 72
THUMBNAIL = 120
BAD_READ = 2000
"""Bad samples that are looked through for examples."""
EXAMPLES = 4
"""Bad samples that are shown for each reason."""


@dataclass(frozen=True)
class Card:
    """A sample of the gallery.

    Attributes:
        key, shard, question, answer: of the sample; the answer is the corpus's, None where it has none.
        facts: what the numbers say, in words.
        picture: data URI of the picture, None where there is none.
        alt: the picture in words.
        missing: why there is no picture.
    """

    key: str
    shard: str
    question: str
    answer: str | None
    facts: str
    picture: str | None
    alt: str
    missing: str | None


@dataclass(frozen=True)
class BadExample:
    """A sample in quarantine; `picture` is a data URI where its image could be read, whole or in part."""

    key: str
    shard: str
    detail: str
    picture: str | None


def choose(numbers: SampleNumbers, each: int, seed: int = 0) -> dict[str, list[int]]:
    """Places in `numbers` by the title of their part of the gallery, at most `each` of them."""
    if not len(numbers) or not each:
        return {}
    chance = np.random.default_rng(seed)
    drawn = sorted(chance.choice(len(numbers), min(each, len(numbers)), replace=False).tolist())
    chosen = {"Drawn at random": drawn}
    if len(numbers.kept):
        chosen["Fewest tokens kept at the end"] = np.argsort(numbers.kept[-1], kind="stable")[:each].tolist()
    known = np.flatnonzero(~np.isnan(numbers.chance))
    if len(known):
        lowest = known[np.argsort(numbers.chance[known], kind="stable")[:each]]
        chosen["Least sure of the first answer token"] = lowest.tolist()
    return chosen


def cards(cache: PrunedCache, numbers: SampleNumbers, places: Sequence[int], how: Reread | None) -> list[Card]:
    """The cards of these samples; without pictures where `how` is None."""
    rows = cache.rows_at([int(numbers.number[place]) for place in places])
    read: Sequence[Sample | InputChanged | None]
    read = [None] * len(rows) if how is None else read_what_is_there(cache, rows, how)
    return [
        _card(cache, row, sample, float(numbers.chance[place]))
        for row, sample, place in zip(rows, read, places, strict=True)
    ]


def _card(cache: PrunedCache, row: dict[str, Any], sample: Sample | InputChanged | None, chance: float) -> Card:
    counts = [len(point) for point in row["kept"]]
    facts = f"{' → '.join(f'{count:,}' for count in [row['image_tokens'], *counts])} tokens"
    if not np.isnan(chance):
        facts += f", first token {chance:.1%} sure"
    picture, missing = None, None
    if isinstance(sample, Sample):
        try:
            ends = sorted({0, len(row["kept"]) - 1}) if row["kept"] else []
            picture = picture_of(cache, row, sample, [row["kept"][point] for point in ends])
        except (Rejected, ValueError) as error:
            missing = str(error)
    elif isinstance(sample, InputChanged):
        missing = str(sample)
    question = question_of(row, sample if isinstance(sample, Sample) else None)
    alt = f"The image of {row['key']}, its base view and its tiles; kept tokens are in colour, dropped ones grey"
    return Card(row["key"], row["shard"], question, row["answer"], facts, picture, alt, missing)


def picture_of(cache: PrunedCache, row: dict[str, Any], sample: Sample, kept: Sequence[Collection[int]]) -> str:
    """Three columns: the first image, its base view and its tiles; a line for each set of kept tokens.

    All have the shape of the image, so that places can be compared. Raises `Rejected` or `ValueError` where the image
    is not one with so many tokens.
    """
    pixels = decode_image(sample.images[0], cache.dataset.identity["source"]["max_pixels"])
    grid = PatchGrid.of_image(row["images"][0])
    scale = min(CELL[0] / pixels.shape[1], CELL[1] / pixels.shape[0])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    lines = []
    for tokens in kept:
        masks = grid.masks(kept_of_image(row["images"], tokens, 0))
        views = [mask for mask in (masks.base, masks.grid) if mask.size]
        lines.append([draw_patches(pixels, view, _patch(view, size)).resize(size) for view in views])
    whole = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    tall = max(1, len(lines))
    picture = Image.new("RGBA", (3 * size[0] + 2 * SPACE, tall * size[1] + (tall - 1) * SPACE), (0, 0, 0, 0))
    picture.paste(whole, (0, 0))
    for down, line in enumerate(lines):
        for along, one in enumerate(line, 1):
            picture.paste(one, (along * (size[0] + SPACE), down * (size[1] + SPACE)))
    return data_uri(picture)


def _patch(view: NDArray[np.bool_], size: tuple[int, int]) -> int:
    """Side of a drawn patch, so that what is drawn is no smaller than it will be shown."""
    return max(5, size[0] // view.shape[1], size[1] // view.shape[0])


def data_uri(picture: Image.Image) -> str:
    """A picture as text that a page can hold."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def bad_examples(cache: PrunedCache, bad: Iterable[dict[str, Any]], how: Reread | None) -> dict[str, list[BadExample]]:
    """For each reason a few bad samples, with thumbnails where their input still has an image.

    Args:
        cache: that they are of.
        bad: rows of the quarantine, with their `shard`.
        how: the input is read again; None for no pictures.
    """
    chosen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in bad:
        if len(chosen[row["reason"]]) < EXAMPLES:
            chosen[row["reason"]].append(row)
    found = {} if how is None else _bad_images(cache, [row for rows in chosen.values() for row in rows], how)
    return {
        reason: [
            BadExample(row["key"], row["shard"], row["detail"], found.get((row["shard"], row["index"]))) for row in rows
        ]
        for reason, rows in chosen.items()
    }


def _bad_images(cache: PrunedCache, rows: list[dict[str, Any]], how: Reread) -> dict[tuple[str, int], str]:
    """Thumbnails by shard and index. What is not text is read although the text is bad."""
    pictures: dict[tuple[str, int], str] = {}
    limit = cache.dataset.identity["source"]["max_pixels"]
    for shard in dict.fromkeys(row["shard"] for row in rows):
        wanted = {row["index"] for row in rows if row["shard"] == shard}
        try:
            for item in read_items(cache, shard, wanted, how, changes={"text_required": False}):
                picture = thumbnail(item.images[0], limit) if isinstance(item, Sample) and item.images else None
                if picture is not None:
                    pictures[shard, item.index] = picture
        except (StoreError, PrefixError, ConfigError):
            continue  # the examples are shown without their pictures
    return pictures


def thumbnail(data: bytes, max_pixels: int) -> str | None:
    """A small picture of what can be seen of an image, which may be cut off; None where nothing can.

    For one thread: Pillow's leave to load a part of an image holds for the whole process.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                return None
            ImageFile.LOAD_TRUNCATED_IMAGES = True
            seen = image.convert("RGB")
    except Exception:  # hostile bytes raise nearly everything somewhere in a decoder
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    seen.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(seen)
