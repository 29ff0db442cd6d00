"""A picture of what was kept: the image, its tiles, and what each prune point keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trio_ray.model.patch_grid import KeptMasks, PatchGrid

GAP = 16
TEXT, SMALL = 20, 15
BASE_PIXELS = 288
"""Least width and height that a tile is drawn with."""
LARGEST_SIDE = 512
"""Most pixels along a drawn grid; patches become smaller where it would be more."""
LINE = 1.35
DIM, LIFT = 0.48, 26.0
"""A dropped patch is its grey times DIM, plus LIFT: dark beside a kept one, light enough to see what it was."""
KEPT, TILE_EDGE, PAPER = (255, 176, 0), (0, 200, 255), (255, 255, 255)
INK, PALE = (20, 24, 31), (90, 98, 110)
DROPPED_NEWLINE = (205, 209, 215)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Caption:
    """What is written above a picture. An answer that is None is not written."""

    key: str
    question: str
    answer: str | None


def draw_sample(
    pixels: Pixels, grid: PatchGrid, kept: Sequence[Sequence[int]], layers: Sequence[int], caption: Caption
) -> Image.Image:
    """The image with question, answer and legend; below it a line for each prune point with what it keeps.

    Args:
        pixels: (height, width, 3) uint8, the image.
        grid: where its tokens lie.
        kept: per prune point, numbers of the kept tokens within this image.
        layers: per prune point, the layer before which it drops.
        caption: what is written beside the image.
    """
    patch = patch_pixels(grid)
    lines = [draw_kept(pixels, grid, grid.masks(numbers), patch) for numbers in kept]
    width = max([line.width for line in lines] + [2 * BASE_PIXELS]) + 2 * GAP
    head = _head(pixels, grid, caption, width)
    step = round(SMALL * LINE) + GAP
    picture = Image.new("RGB", (width, head.height + sum(line.height + step for line in lines) + GAP), PAPER)
    picture.paste(head, (0, 0))
    draw = ImageDraw.Draw(picture)
    at = head.height
    for line, numbers, layer in zip(lines, kept, layers, strict=True):
        words = f"before layer {layer}: {len(numbers):,} of {grid.tokens:,} tokens kept"
        draw.text((GAP, at), f"{words} ({len(numbers) / grid.tokens:.1%})", fill=INK, font=_font(SMALL))
        picture.paste(line, (GAP, at + round(SMALL * LINE)))
        at += line.height + step
    return picture


def draw_kept(pixels: Pixels, grid: PatchGrid, masks: KeptMasks, patch: int) -> Image.Image:
    """The base view on the left, the high-resolution grid with its tiles on the right; dropped patches are grey.

    At the end of each row of the grid stands its newline token. `patch` is the side of a drawn patch in pixels.
    """
    left = draw_patches(pixels, masks.base, patch)
    if not masks.grid.size:
        return left
    right = draw_patches(pixels, masks.grid, patch)
    _draw_tile_edges(right, grid, patch)
    mark = max(4, patch // 3)
    size = (left.width + GAP + right.width + 2 + mark, max(left.height, right.height))
    both = Image.new("RGB", size, PAPER)
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP, 0))
    draw = ImageDraw.Draw(both)
    for row, is_kept in enumerate(masks.newlines.tolist()):
        x, y = left.width + GAP + right.width + 2, row * patch
        draw.rectangle((x, y + 1, x + mark - 1, y + patch - 2), fill=KEPT if is_kept else DROPPED_NEWLINE)
    return both


def draw_patches(pixels: Pixels, kept: NDArray[np.bool_], patch: int) -> Image.Image:
    """The image squeezed onto the (rows, columns) of `kept`: kept patches in their colours, the rest dim and grey."""
    rows, columns = kept.shape
    squeezed = Image.fromarray(pixels).resize((columns * patch, rows * patch), Image.Resampling.BICUBIC)
    dim = np.asarray(squeezed.convert("L"), np.float32)[..., None] * DIM + LIFT
    stays = kept.repeat(patch, 0).repeat(patch, 1)[..., None]
    picture = Image.fromarray(np.where(stays, np.asarray(squeezed), dim).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for row, column in zip(*np.nonzero(kept), strict=True):
        x, y = int(column) * patch, int(row) * patch
        draw.rectangle((x, y, x + patch - 1, y + patch - 1), outline=KEPT)
    return picture


def patch_pixels(grid: PatchGrid, tile: int = BASE_PIXELS, longest: int = LARGEST_SIDE) -> int:
    """Side of a drawn patch: a tile is at least `tile` pixels wide, unless the grid would be longer than `longest`."""
    return max(4, min(-(-tile // grid.side), longest // max(grid.side, grid.rows, grid.columns)))


def _draw_tile_edges(picture: Image.Image, grid: PatchGrid, patch: int) -> None:
    """Lines where one tile ends and the next begins; unpadding may have cut the first tile short."""
    draw = ImageDraw.Draw(picture)
    step = grid.side * patch
    for x in range(step - grid.patch_columns[0] % grid.side * patch, picture.width, step):
        draw.line((x, 0, x, picture.height), fill=TILE_EDGE, width=2)
    for y in range(step - grid.patch_rows[0] % grid.side * patch, picture.height, step):
        draw.line((0, y, picture.width, y), fill=TILE_EDGE, width=2)


def _head(pixels: Pixels, grid: PatchGrid, caption: Caption, width: int) -> Image.Image:
    """The original image, and beside it what was asked of it and what the colours mean."""
    height, wide = pixels.shape[:2]
    scale = min(BASE_PIXELS / height, BASE_PIXELS / wide)
    size = (max(1, round(wide * scale)), max(1, round(height * scale)))
    original = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    left = GAP + original.width + GAP
    room = width - left - GAP
    rows, columns = grid.tiles
    tiles = f"{rows} x {columns} tiles and the base view"
    facts = f"{caption.key}: {wide} x {height} pixels, {tiles}, {grid.tokens:,} tokens"
    written = [(line, SMALL, PALE) for line in _wrapped(facts, SMALL, room, 2)]
    written += [(line, TEXT, INK) for line in _wrapped(caption.question, TEXT, room, 6)]
    if caption.answer is not None:
        written += [(line, TEXT, INK) for line in _wrapped(f"Answer: {caption.answer}", TEXT, room, 3)]
    tall = sum(round(size * LINE) for _, size, _ in written) + GAP // 2 + len(_LEGEND) * round(SMALL * LINE)
    head = Image.new("RGB", (width, max(original.height, tall) + 2 * GAP), PAPER)
    head.paste(original, (GAP, GAP))
    draw = ImageDraw.Draw(head)
    at = GAP
    for line, size_of_text, colour in written:
        draw.text((left, at), line, fill=colour, font=_font(size_of_text))
        at += round(size_of_text * LINE)
    at += GAP // 2
    for fill, outline, words in _LEGEND:
        draw.rectangle((left, at + 3, left + SMALL - 1, at + SMALL + 2), fill=fill, outline=outline, width=2)
        draw.text((left + SMALL + 8, at), words, fill=INK, font=_font(SMALL))
        at += round(SMALL * LINE)
    return head


_LEGEND = (
    (PAPER, KEPT, "kept token, in its own colours"),
    ((70, 70, 70), (70, 70, 70), "dropped token, grey"),
    (TILE_EDGE, TILE_EDGE, "edge between two tiles; the base view is on the left"),
    (KEPT, KEPT, "at the end of a row: its newline token, kept"),
)


def _wrapped(text: str, size: int, room: int, most: int) -> list[str]:
    """Lines no wider than `room` pixels, at most `most` of them."""
    font, lines = _font(size), list[str]()
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split() or [""]:
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > room:
                lines.append(line)
                longer = word
            while font.getlength(longer) > room and len(longer) > 1:
                cut = next(n for n in range(len(longer) - 1, 0, -1) if n == 1 or font.getlength(longer[:n]) <= room)
                lines.append(longer[:cut])
                longer = longer[cut:]
            line = longer
        lines.append(line)
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], lines[most - 1][:-1] + "…"]


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own font, which has more letters than Pillow's."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
