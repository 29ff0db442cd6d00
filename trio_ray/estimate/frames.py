"""Prefixes of the drawn samples as they would be stored, without keys and values: shapes, and made-up choices.

Which tokens a selector keeps does not change how many bytes their numbers take by much: here they are drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextConfig

from trio_ray.config import JobConfig
from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.encode import CodedPrefix
from trio_ray.method.method import Method
from trio_ray.method.rows import Positions
from trio_ray.method.schedule import Schedule
from trio_ray.model.prepare import PreparedSample


def frame_of_sample(
    sample: PreparedSample, number: int, config: JobConfig, model_config: LlavaNextConfig, method: Method,
    dtype: torch.dtype,
) -> CodedPrefix:  # fmt: skip
    """A sample's stored prefix without keys and values.

    Args:
        sample: prepared.
        number: seeds the random choice of kept tokens.
        config: the job.
        model_config: the model's.
        method: which tokens are kept.
        dtype: of the keys and values.
    """
    random = np.random.default_rng(number)
    is_image = np.array(sample.input_ids) == model_config.image_token_id
    places = np.flatnonzero(is_image)
    stored = int(places[-1]) + 1 if config.cache.scope == "image" else sample.rows
    kept, held = [], np.arange(len(places))
    for count in method.schedule.counts(sample.image_tokens):
        held = np.sort(random.choice(held, count, replace=False))
        kept.append(held)
    runs = [(layers, held) for layers, held in _runs(method.schedule, kept, len(places)) if layers]
    texts, positions = [], []
    for _, held in runs:
        rows = np.sort(np.concatenate([np.flatnonzero(~is_image[:stored]), places[held]]))
        texts.append(torch.from_numpy(~is_image[rows]))
        positions.append(_positions(rows, stored, method.positions))
    top_k = 0 if config.cache.scope == "image" else config.cache.top_k
    vocabulary = model_config.get_text_config().vocab_size
    return CodedPrefix(
        length=stored,
        shapes=_shapes([layers for layers, _ in runs], texts, int(places[0]), model_config, dtype),
        segments=(),
        positions=tuple(positions),
        texts=tuple(texts),
        kept=tuple(torch.from_numpy(indices).int() for indices in kept),
        top_ids=torch.tensor(random.integers(0, vocabulary, top_k).tolist(), dtype=torch.int32),
        top_logprobs=torch.tensor((-np.sort(random.exponential(4.0, top_k))).tolist(), dtype=torch.float32),
    )


def _runs(schedule: Schedule, kept: Sequence[np.ndarray], tokens: int) -> list[tuple[int, np.ndarray]]:
    """Number of layers and image tokens of each run of layers."""
    edges = (0, *schedule.prune_points, schedule.layers)
    return [
        (stop - start, held) for (start, stop), held in zip(pairwise(edges), [np.arange(tokens), *kept], strict=True)
    ]


def _positions(rows: np.ndarray, length: int, positions: Positions) -> Tensor:
    if positions == "compact":
        return torch.arange(length - len(rows), length, dtype=torch.int32)
    return torch.from_numpy(rows).int()


def _shapes(
    layers: Sequence[int], texts: Sequence[Tensor], lead: int, model_config: LlavaNextConfig, dtype: torch.dtype
) -> tuple[SegmentShape, ...]:
    text_config = model_config.get_text_config()
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    shapes, first = [], 0
    for count, text in zip(layers, texts, strict=True):
        rows, images = len(text), int((~text).sum())
        shapes.append(SegmentShape(first, count, rows, images, lead, text_config.num_key_value_heads, head_dim, dtype))
        first += count
    return tuple(shapes)
