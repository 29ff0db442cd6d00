"""How many samples make a part: as many as its bytes are wanted, once the codec has made them small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch

from trio_ray.config import JobConfig
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.codecs.codec import Codec
from trio_ray.method.schedule import Schedule

MAX_PART_SAMPLES = 4096
TEXT_ROWS = 64
"""Rows of prompt text that a sample is reckoned to have; half of them ahead of the image."""


@dataclass(frozen=True)
class PartSize:
    """Of a job's parts, for an image on the largest grid.

    Attributes:
        config: the job.
        schedule: how many image tokens stay where.
        model_config: of the model.
        dtype: of keys and values.
    """

    config: JobConfig
    schedule: Schedule
    model_config: Any
    dtype: torch.dtype

    def samples(self, codec: Codec | None) -> int:
        """Of a part; `codec` None where keys and values are not stored. The lossless stage is left out: with it a part
        is smaller than wanted.
        """
        level = self.config.cache.level
        if level == "indices":
            return self._of(0.0)
        if codec is None:
            text_config = self.model_config.get_text_config()
            rows = self.schedule.counts(self._image_tokens)[0] + TEXT_ROWS
            return self._of(float(rows * text_config.hidden_size * self.dtype.itemsize))
        return self._of(float(codec.layout_bytes(tuple(self._shapes()))))

    def samples_made_smaller(self, times: float) -> int:
        """The same for a codec that makes keys and values so many times smaller than they are in `dtype`."""
        plain = sum(2 * prod(shape.size) * shape.dtype.itemsize for shape in self._shapes())
        return self._of(plain / times)

    def _of(self, sample_bytes: float) -> int:
        cache = self.config.cache
        if cache.part_samples is not None:
            return cache.part_samples
        return max(1, int(min(MAX_PART_SAMPLES, cache.part_bytes / max(1.0, sample_bytes))))

    @property
    def _image_tokens(self) -> int:
        vision = self.model_config.vision_config
        patches = max(height * width for height, width in self.model_config.image_grid_pinpoints) // (
            vision.patch_size**2
        )
        return int(patches + (vision.image_size // vision.patch_size) ** 2)

    def _shapes(self) -> Iterator[SegmentShape]:
        """A sample's segments."""
        text = self.model_config.get_text_config()
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        counts = self.schedule.counts(self._image_tokens)
        edges = (0, *self.schedule.prune_points, self.schedule.layers)
        held = (self._image_tokens, *counts)
        for (start, stop), images in zip(pairwise(edges), held, strict=True):
            if start < stop:
                yield SegmentShape(
                    start, stop - start, images + TEXT_ROWS, images, TEXT_ROWS // 2, text.num_key_value_heads,
                    head_dim, self.dtype,
                )  # fmt: skip
