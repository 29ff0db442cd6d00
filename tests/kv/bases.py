"""Bases of the transform codec fitted to made-up states, without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from trio_ray.calibration.fit import analyse, quantise, rotary_tables
from trio_ray.kv.batch import SegmentBatch
from trio_ray.kv.codecs.transform_basis import STEP_BITS, Basis

HEADS, DIM, LEADS = 2, 8, 3
LAYERS = (1, 3)
"""Layers of the two segments."""


def make_segments(samples: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> tuple[SegmentBatch, ...]:
    """A batch of two segments: rows of low rank, and the same three text rows ahead of every image."""
    generator = torch.Generator().manual_seed(seed)
    segments = []
    for number, layers in enumerate(LAYERS):
        images = tuple(12 - 8 * number + sample % 3 for sample in range(samples))
        tails = tuple(2 + sample % 2 for sample in range(samples))
        lengths = tuple(LEADS + i + t for i, t in zip(images, tails, strict=True))
        text = torch.cat(
            [torch.cat([torch.ones(LEADS), torch.zeros(i), torch.ones(t)]) for i, t in zip(images, tails, strict=True)]
        ).bool()
        rows = torch.randn(sum(lengths), 6, generator=generator)
        mixing = torch.randn(6, layers * 2 * HEADS * DIM, generator=torch.Generator().manual_seed(number))
        states = rows @ mixing + 0.05 * torch.randn(sum(lengths), mixing.shape[1], generator=generator) + 1
        start = 0
        for length in lengths:
            states[start : start + LEADS] = 30 * torch.randn(
                LEADS, mixing.shape[1], generator=torch.Generator().manual_seed(100 + number)
            )
            start += length
        both = states.view(-1, layers, 2, HEADS, DIM).permute(1, 2, 0, 3, 4)
        position = torch.cat([torch.arange(20 - length, 20) for length in lengths]).int()
        position[text & (torch.cat([torch.arange(length) for length in lengths]) < LEADS)] = 5
        segments.append(
            SegmentBatch(
                first_layer=sum(LAYERS[:number]),
                keys=both[:, 0].contiguous().to(dtype),
                values=both[:, 1].contiguous().to(dtype),
                lengths=lengths,
                image_counts=images,
                leads=(LEADS,) * samples,
                position=position,
                text=text,
            )
        )
    return tuple(segments)


def make_basis(step: float, segments: tuple[SegmentBatch, ...] | None = None) -> Basis:
    """A basis for such segments; the second one's layers are two groups."""
    first, second = segments or make_segments(16, seed=1)
    cosine, sine = rotary_tables(10000.0 ** -(torch.arange(0, DIM, 2) / DIM), 32)
    tables = Basis({"weights": "0"}, HEADS, DIM, LEADS, 0, cosine, sine, (), {})
    rounding = 1 << (STEP_BITS - 1)
    groups = tuple(
        quantise(analyse(batch, start, layers, tables, _alike(layers), 64), step, rounding)
        for batch, start, layers in ((first, 0, 1), (second, 1, 2), (second, 3, 1))
    )
    return Basis({"weights": "0"}, HEADS, DIM, LEADS, rounding, cosine, sine, groups, {"step": step})


def _alike(layers: int) -> tuple[Tensor, Tensor]:
    ones = torch.ones(layers * 2 * HEADS * DIM)
    return ones, ones
