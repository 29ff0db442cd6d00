"""Made-up keys and values in the shapes of real prefills, for what depends on sizes and not on a model.

They are random, but spread as a language model's are: keys lie around a mean of their own in every channel, a few
channels far out, and much of what differs from row to row is shared between channels; values have no mean, and rows
and heads of different size. How small a codec makes them is near what real states give; what it costs in answers they
cannot say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch, SegmentBatch
from trio_ray.method.schedule import AUTHORS_SHAPE, DEFAULT_RETENTION, Schedule

OUTLIER_SHARE, OUTLIER_SIZE = 0.03, 8.0
SHARED = 16
"""Directions that the rows of a head share."""

MODEL_SEED = 1 << 20
"""Added to a layer's number to make its seed; far away from the seeds of samples."""


@dataclass(frozen=True)
class Geometry:
    """A model's decoder and its samples: `least` to `most` image tokens, `lead` text rows ahead of them (the chat
    template's) and `tail` behind them (a short question).
    """

    layers: int
    kv_heads: int
    head_dim: int
    least: int
    most: int
    lead: int
    tail: int

    def row_bytes(self, layers: int) -> int:
        """Bytes of one row's keys and values in `layers` layers, in 16 bit."""
        return 4 * layers * self.kv_heads * self.head_dim


GEOMETRIES = {
    "vicuna-7b": Geometry(32, 32, 128, 2144, 2880, 36, 24),
    "mistral-7b": Geometry(32, 8, 128, 2144, 2880, 5, 24),
    "bundled": Geometry(16, 6, 32, 180, 300, 2, 10),
}
"""The decoders of llava-hf/llava-v1.6-vicuna-7b-hf and -mistral-7b-hf (their config.json), and the bundled model's."""


def prefix_batch(geometry: Geometry, samples: int, device: torch.device, seed: int = 0) -> PrefixBatch:
    """Pruned prefixes in bfloat16 as TRIO leaves them at 11.1 % with its authors' prune points.

    What a model decides, such as where a channel lies and what it shares with others, is the same for every seed;
    samples differ.
    """
    points = AUTHORS_SHAPE.points_for(geometry.layers, DEFAULT_RETENTION)
    schedule = Schedule(geometry.layers, points, retention=DEFAULT_RETENTION)
    generator = torch.Generator(device).manual_seed(seed)
    step = (geometry.most - geometry.least) // max(samples - 1, 1)
    images = [geometry.most - number * step for number in range(samples)]
    held = [_all(images, device)]
    for keep in zip(*(schedule.counts(image) for image in images), strict=True):
        held.append([_choose(rows, count, generator) for rows, count in zip(held[-1], keep, strict=True)])
    segments = tuple(
        _segment(geometry, range(first, last), rows, images, generator)
        for (first, last), rows in zip(pairwise([0, *points, geometry.layers]), held, strict=True)
    )
    return PrefixBatch(
        lengths=tuple(image + geometry.lead + geometry.tail for image in images),
        segments=segments,
        kept=tuple(torch.cat(rows).int() for rows in held[1:]),
        kept_counts=tuple(tuple(len(row) for row in rows) for rows in held[1:]),
        top_ids=torch.arange(8, dtype=torch.int32, device=device).repeat(samples, 1),
        top_logprobs=torch.linspace(-0.1, -6, 8, device=device).repeat(samples, 1),
    )


def _all(images: Sequence[int], device: torch.device) -> list[Tensor]:
    return [torch.arange(count, device=device) for count in images]


def _choose(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the image rows, drawn at random, ascending."""
    order = torch.rand(len(rows), generator=generator, device=rows.device).argsort()
    return rows[order[:count].sort().values]


def _segment(
    geometry: Geometry, layers: range, held: Sequence[Tensor], images: Sequence[int], generator: torch.Generator
) -> SegmentBatch:
    """A segment that holds the image rows `held` of each sample, beside its text."""
    device, lead = held[0].device, geometry.lead
    before, behind = torch.arange(lead, device=device), torch.arange(geometry.tail, device=device) + lead
    position = torch.cat(
        [torch.cat([before, rows + lead, behind + count]) for rows, count in zip(held, images, strict=True)]
    )
    texts = [torch.ones(lead + len(rows) + geometry.tail, dtype=torch.bool, device=device) for rows in held]
    for text, rows in zip(texts, held, strict=True):
        text[lead : lead + len(rows)] = False
    lengths = tuple(map(len, texts))
    size = (len(layers), sum(lengths), geometry.kv_heads, geometry.head_dim)
    keys, values = (torch.empty(size, dtype=torch.bfloat16, device=device) for _ in range(2))
    for layer in range(len(layers)):
        model = torch.Generator(device).manual_seed(MODEL_SEED + layers[layer])
        keys[layer] = _keys(size[1:], model, generator)
        values[layer] = _values(size[1:], model, generator)
    return SegmentBatch(
        first_layer=layers.start,
        keys=keys,
        values=values,
        lengths=lengths,
        image_counts=tuple(len(rows) for rows in held),
        leads=(lead,) * len(held),
        position=position.int(),
        text=torch.cat(texts),
    )


def _keys(size: tuple[int, int, int], model: torch.Generator, generator: torch.Generator) -> Tensor:
    """(rows, heads, dim): each channel around its mean, some of them far out."""
    _, heads, dim = size
    outlier = torch.rand((heads, dim), generator=model, device=model.device) < OUTLIER_SHARE
    mean = _normal((heads, dim), model) * torch.where(outlier, OUTLIER_SIZE, 1.0)
    return mean + _rows(size, model, generator) * (0.4 * _normal((heads, dim), model)).exp()


def _values(size: tuple[int, int, int], model: torch.Generator, generator: torch.Generator) -> Tensor:
    """(rows, heads, dim): around 0, rows and heads of different size."""
    rows, heads, _ = size
    return 0.5 * _rows(size, model, generator) * (0.3 * _normal((rows, heads, 1), generator)).exp()


def _rows(size: tuple[int, int, int], model: torch.Generator, generator: torch.Generator) -> Tensor:
    """(rows, heads, dim) of variance 1, half of it in a few directions."""
    rows, heads, dim = size
    shared = torch.einsum(
        "rhs,hsd->rhd", _normal((rows, heads, SHARED), generator), _normal((heads, SHARED, dim), model)
    )
    return (shared * SHARED**-0.5 + _normal(size, generator)) * 0.5**0.5


def _normal(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, device=generator.device)
