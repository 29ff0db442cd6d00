"""Samples to measure with: images of real sizes and prompts of real lengths, with contents that do not matter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from trio_ray.errors import ModelError
from trio_ray.lab.image_sizes import draw_size
from trio_ray.lab.scenes.families import SHAPES
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.source.sample import Sample, Turn

QUESTIONS_PER_IMAGE = {"pope": 6, "web": 1}
"""POPE asks six questions about each of its images (three there, three not); a crawled image has one text."""

TEMPLATE_TOKENS = 43
"""What Vicuna's system prompt and LLaVA's role names add to a question in LLaVA's tokenizer, beyond the bundled one's
own template.
"""

POPE_TOKENS = (18, 24)
"""Bounds of the tokens of "Is there a ... in the image? Answer the question using a single word or phrase."."""

WEB_TOKENS, WEB_TOKENS_SPREAD, WEB_TOKENS_MOST = 18, 0.6, 77
"""Median length of an alt text in tokens, standard deviation of its logarithm, and where CLIP would cut it."""

BLUR = 24
"""Pixels to a random value; between them the image is smooth, as photographs are."""


@dataclass(frozen=True)
class Workload:
    """Prepared samples, several questions about one image one behind the other.

    Attributes:
        name: `pope` or `web`.
        samples: ready for the model.
        images: how many they are about.
        tiles_ms: milliseconds that one thread took to decode, tile and tokenize, a sample.
    """

    name: str
    samples: tuple[PreparedSample, ...]
    images: int
    tiles_ms: float

    def describe(self) -> dict[str, float | int | str]:
        """The numbers that matter for speed: counts, and means over samples."""
        samples = self.samples
        return {
            "name": self.name,
            "samples": len(samples),
            "images": self.images,
            "rows": float(np.mean([sample.rows for sample in samples])),
            "image_tokens": float(np.mean([sample.image_tokens for sample in samples])),
            "tiles": float(np.mean([sum(len(image.tiles) for image in sample.images) for sample in samples])),
        }


def make_workload(replica: Replica, name: str, samples: int, seed: int = 0) -> Workload:
    """`samples` samples of a `pope` or `web` corpus, the same for the same seed, prepared by the replica's CPU side.

    Raises:
        ModelError: the model's context is too short for them.
    """
    random = np.random.default_rng(seed)
    raw: list[Sample] = []
    image = b""
    for number in range(samples):
        if number % QUESTIONS_PER_IMAGE[name] == 0:
            image = synthesise(*draw_size(name, random), random)
        raw.append(Sample(f"{number:06d}", number, (image,), (Turn("user", make_question(name, random)),)))
    preparer = replica.preparer(max_pixels=10**8)
    started = time.perf_counter()
    prepared = [preparer.prepare(sample) for sample in raw]
    milliseconds = 1e3 * (time.perf_counter() - started) / samples
    good = tuple(sample for sample in prepared if isinstance(sample, PreparedSample))
    if len(good) < samples:
        bad = next(sample for sample in prepared if not isinstance(sample, PreparedSample))
        raise ModelError(f"the model cannot take the workload {name}: {bad.detail}")
    return Workload(name, good, len({sample.images[0].hash for sample in good}), milliseconds)


def synthesise(height: int, width: int, random: np.random.Generator) -> bytes:
    """A JPEG of smooth colours with a little grain."""
    coarse = random.integers(0, 256, (height // BLUR + 2, width // BLUR + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grainy = smooth + random.integers(-8, 9, (height, width, 1), dtype=np.int16)
    file = BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
    return file.getvalue()


def make_question(name: str, random: np.random.Generator) -> str:
    """Words of the bundled vocabulary, each of them one token."""
    if name == "pope":
        length = int(random.integers(POPE_TOKENS[0], POPE_TOKENS[1] + 1))
    else:
        drawn = WEB_TOKENS * np.exp(WEB_TOKENS_SPREAD * random.standard_normal())
        length = int(np.clip(round(drawn), 1, WEB_TOKENS_MOST))
    words = [word for word in SHAPES.vocabulary() if word.isalpha()]
    return " ".join(random.choice(words, TEMPLATE_TOKENS + length))
