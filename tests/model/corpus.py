"""Samples for the tiny models: pictures of any size and prompts of any length."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.tiny_models import WORDS
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.source.sample import Sample, Turn

SIZES = [
    (40, 50), (50, 40), (28, 28), (1, 1), (7, 300), (300, 50), (20, 200), (56, 56), (100, 30), (33, 77), (90, 91),
    (400, 8),
    (29, 57), (13, 60), (64, 48), (250, 250), (28, 84), (84, 27), (5, 9), (120, 121),
]  # fmt: skip
"""(height, width) of pictures that between them use every grid of the tiny models."""


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) uint8: colour gradients with noise, so that patches differ and none is plain."""
    random = np.random.default_rng(seed * 1_000_003 + height * 1009 + width)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / random.uniform(2, 20) + columns / random.uniform(2, 20)) for _ in range(3)]
    noise = random.normal(0, 20, (height, width, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encoded without loss."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def words(count: int, seed: int = 0) -> str:
    """A question of `count` words of the tiny vocabulary."""
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS[7:], count))


def make_sample(sizes: Sequence[tuple[int, int]], text: str, seed: int = 0) -> Sample:
    """A sample of one user turn with pictures of these sizes."""
    images = tuple(png(picture(*size, seed + number)) for number, size in enumerate(sizes))
    return Sample(key=f"s{seed}", index=seed, images=images, turns=(Turn("user", text),))


def prepare(replica: Replica, samples: Sequence[Sample]) -> list[PreparedSample]:
    """Prepared by the replica's own CPU side; fails on a bad sample."""
    preparer = replica.preparer(10**8)
    prepared = [preparer.prepare(sample) for sample in samples]
    bad = [sample for sample in prepared if not isinstance(sample, PreparedSample)]
    assert not bad, bad
    return prepared  # type: ignore[return-value]


def samples_of_all_grids(count: int = len(SIZES)) -> list[Sample]:
    """`count` samples of different sizes and prompt lengths; each seventh has two pictures."""
    samples = []
    for seed in range(count):
        height, width = SIZES[seed % len(SIZES)]
        sizes = [(height + seed // len(SIZES), width)]
        if seed % 7 == 5:
            sizes.append(SIZES[(seed + 4) % len(SIZES)])
        samples.append(make_sample(sizes, words(1 + seed % 9, seed), seed))
    return samples


def hugging_face_inputs(processor: Any, sample: Sample, prompt: str) -> Any:
    """What the model's own processor makes of a prompt's text and the sample's pictures."""
    images = [Image.open(BytesIO(data)) for data in sample.images]
    return processor(images=images, text=prompt, return_tensors="pt")
