"""A scene as training arrays: tiles, what every patch shows, and many questions behind one image.

The questions of a scene share its image rows: each sees the image and itself, not the others (`segments`), and its
positions go on where the image ends, so every one of them is computed as if it were alone.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from jobs.tiny.architecture import (
    BOS,
    EOS,
    IMAGE,
    MAX_TILES,
    PAD,
    PATCH,
    PATCHES,
    build_image_processor,
    build_tokenizer,
)
from trio_ray.lab.scenes import QUESTION_TYPES, Family, Question, Rendering, make_questions
from trio_ray.lab.scenes.families import FAMILIES
from trio_ray.lab.scenes.views import PINPOINTS, TILE

ROWS = 640
MAX_IMAGE_ROWS = 336
MAX_QUESTIONS = 48
SIDE = TILE // PATCH
NEWLINE = MAX_TILES * PATCHES  # where an image row takes `image_newline` instead of a patch
UNLABELLED = 255

# The questions that take longest to learn are asked more often.
WEIGHTS = {
    "color": 0.8,
    "shape": 0.8,
    "letter": 1.0,
    "existence": 0.8,
    "count": 1.2,
    "relation": 1.6,
    "position": 0.8,
    "text": 2.0,
    "list": 1.6,
}

# Name, shape and type of the arrays of one example.
FIELDS: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
    "tiles": ((MAX_TILES, 3, TILE, TILE), np.uint8),
    "tile_count": ((), np.uint8),
    "labels": ((MAX_TILES, PATCHES, 3), np.uint8),
    "sources": ((MAX_IMAGE_ROWS,), np.int16),
    "ids": ((ROWS,), np.uint8),
    "targets": ((ROWS,), np.uint8),
    "segments": ((ROWS,), np.uint8),
    "positions": ((ROWS,), np.int16),
    "types": ((MAX_QUESTIONS,), np.uint8),
}
Example = dict[str, NDArray[np.generic]]


def empty_examples(count: int) -> Example:
    """Arrays for `count` examples."""
    return {name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in FIELDS.items()}


def write_example(out: Example, index: int, rendering: Rendering, variant: int = 0) -> None:
    """Turn a drawn scene into row `index` of the arrays of `empty_examples`."""
    tiles = _image_processor()(rendering.image, return_tensors="np")["pixel_values"][0]
    scene = rendering.scene
    sources = image_sources(scene.height, scene.width)
    out["tiles"][index, : len(tiles)] = tiles
    out["tile_count"][index] = len(tiles)
    out["labels"][index] = _labels(rendering)
    out["sources"][index] = NEWLINE
    out["sources"][index, : len(sources)] = sources
    questions = make_questions(scene, MAX_QUESTIONS, variant=variant, weights=WEIGHTS)
    _write_questions(out, index, scene.family, len(sources), questions)


@cache
def _label_names(family: str) -> tuple[tuple[str | None, ...], ...]:
    scenes = FAMILIES[family]
    return (
        (None, *scenes.shapes, "tag"),
        (None, *scenes.colors, *(f"{tone} tag" for tone in scenes.tag_tones)),
        (None, *scenes.letters, *scenes.tag_words),
    )


def label_sizes(family: Family) -> tuple[int, ...]:
    """How many labels there are of each kind: what a patch shows, its colour, the letter or word on it."""
    return tuple(len(names) for names in _label_names(family.name))


@lru_cache
def image_sources(height: int, width: int) -> NDArray[np.int16]:
    """For each image row of the prompt, its patch (tile * PATCHES + patch; tile 0 is the base view) or NEWLINE."""
    grid = get_anyres_image_grid_shape((height, width), [list(grid) for grid in PINPOINTS], TILE)
    tile = np.arange(1, 1 + grid[0] * grid[1]).reshape(grid).repeat(SIDE, 0).repeat(SIDE, 1)
    across, down = np.meshgrid(np.arange(grid[1] * SIDE) % SIDE, np.arange(grid[0] * SIDE) % SIDE)
    patches = tile * PATCHES + down * SIDE + across
    top, left = _padding(height, width, *patches.shape)
    patches = patches[top : patches.shape[0] - top, left : patches.shape[1] - left]
    fine = np.concatenate([patches, np.full((len(patches), 1), NEWLINE)], axis=1)
    return np.concatenate([np.arange(PATCHES), fine.ravel()]).astype(np.int16)


def _padding(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Patch rows above and columns left of the picture that hold nothing of it, as the model takes them off."""
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _labels(rendering: Rendering) -> NDArray[np.uint8]:
    """Shape, colour and mark labels of the thing that covers most of each patch, (MAX_TILES, PATCHES, 3)."""
    scene = rendering.scene
    shapes, colors, marks = _label_names(scene.family.name)
    table = np.zeros((1 + len(scene.objects) + len(scene.tags), 3), np.uint8)
    for i, item in enumerate(scene.objects, start=1):
        table[i] = (
            shapes.index(item.shape),
            colors.index(item.color),
            marks.index(item.letter),
        )
    for i, tag in enumerate(scene.tags, start=1 + len(scene.objects)):
        table[i] = shapes.index("tag"), colors.index(f"{tag.tone} tag"), marks.index(tag.word)
    owners = np.repeat(rendering.owners[None], 3, axis=0)
    tiles = _owner_processor()(owners, return_tensors="np", input_data_format="channels_first")["pixel_values"][0][:, 0]
    patches = tiles.reshape(-1, SIDE, PATCH, SIDE, PATCH).swapaxes(2, 3).reshape(-1, PATCH * PATCH)
    counts = np.zeros((len(patches), len(table)), np.int64)
    np.add.at(counts, (np.arange(len(patches))[:, None], patches), 1)
    counts[:, 0] //= 6  # a thing counts from a seventh of a patch on
    labels = np.full((MAX_TILES, PATCHES, 3), UNLABELLED, np.uint8)
    labels[: len(tiles)] = table[counts.argmax(axis=1)].reshape(-1, PATCHES, 3)
    base = labels[0]  # the base view need not guess at words that it does not show
    base[base[:, 0] == shapes.index("tag"), 2] = UNLABELLED
    return labels


def _write_questions(out: Example, index: int, family: Family, image_rows: int, questions: list[Question]) -> None:
    """Lay the prompt's start, the image and as many questions as fit into one row of ROWS tokens."""
    ids, targets = out["ids"][index], out["targets"][index]
    segments, positions = out["segments"][index], out["positions"][index]
    head = [BOS, *_encode(family.name, "USER:")]
    shared = len(head) + image_rows
    ids[:], targets[:], segments[:] = PAD, PAD, UNLABELLED
    ids[: len(head)], ids[len(head) : shared], segments[:shared] = head, IMAGE, 0
    positions[:] = np.arange(ROWS)
    row = shared
    for number, question in enumerate(questions, start=1):
        asked = _encode(family.name, f"{question.text} ASSISTANT:")
        answer = [*_encode(family.name, question.answer), EOS]
        end = row + len(asked) + len(answer) - 1
        if end > ROWS:
            break
        ids[row:end] = [*asked, *answer[:-1]]
        targets[end - len(answer) : end] = answer
        segments[row:end] = number
        positions[row:end] = shared + np.arange(end - row)
        out["types"][index, number - 1] = list(QUESTION_TYPES).index(question.type)
        row = end


@cache
def _encode(family: str, text: str) -> tuple[int, ...]:
    return tuple(_tokenizer(family)(text, add_special_tokens=False)["input_ids"])


@cache
def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    return build_tokenizer(FAMILIES[family])


@lru_cache
def _image_processor() -> LlavaNextImageProcessorPil:
    """The model's own tiling, left as bytes: the GPU normalises."""
    processor = build_image_processor()
    processor.do_rescale = processor.do_normalize = False
    return processor


@lru_cache
def _owner_processor() -> LlavaNextImageProcessorPil:
    """The same tiling for maps of numbers, which must not be mixed."""
    processor = build_image_processor()
    processor.do_rescale = processor.do_normalize = processor.do_convert_rgb = False
    processor.resample = 0
    return processor
