"""Prefixes that end where the last image ends, so that any question can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch

from trio_ray.kv.batch import PrefixBatch, SegmentBatch
from trio_ray.tensors import to_device

Scope = Literal["prompt", "image"]
"""How far a prefix goes: over the whole prompt, or up to the end of its last image."""


def up_to_images(batch: PrefixBatch, tails: Sequence[int]) -> PrefixBatch:
    """A batch without the text behind each sample's last image row.

    Attention is causal, so the rows that stay are what they would be without those behind them, given the same kept
    tokens. There is no first answer token yet: `top_ids` and `top_logprobs` have no entries.

    Args:
        batch: of whole prompts.
        tails: text rows behind each sample's last image row (`PackedRows.tails`); no prune point drops any of them.
    """
    return replace(
        batch,
        lengths=tuple(length - tail for length, tail in zip(batch.lengths, tails, strict=True)),
        segments=tuple(_cut(segment, tails) for segment in batch.segments),
        top_ids=batch.top_ids[:, :0],
        top_logprobs=batch.top_logprobs[:, :0],
    )


def _cut(segment: SegmentBatch, tails: Sequence[int]) -> SegmentBatch:
    spans = zip(pairwise(segment.offsets), tails, strict=True)
    rows = to_device(
        torch.cat([torch.arange(start, stop - tail) for (start, stop), tail in spans]), segment.text.device
    )
    return replace(
        segment,
        keys=segment.keys.index_select(1, rows),
        values=segment.values.index_select(1, rows),
        lengths=tuple(length - tail for length, tail in zip(segment.lengths, tails, strict=True)),
        leads=tuple(
            min(lead, length - tail) for lead, length, tail in zip(segment.leads, segment.lengths, tails, strict=True)
        ),
        position=segment.position[rows],
        text=segment.text[rows],
    )
