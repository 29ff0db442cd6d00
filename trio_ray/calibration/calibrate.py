"""From calibration prefixes to a basis: information, components, and the step that gives a wanted size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trio_ray.calibration.fit import GROUP_CHANNELS, Analysis, analyse, groups_of, quantise, rotary_tables
from trio_ray.calibration.information import channel_information
from trio_ray.kv.batch import PrefixBatch, SegmentBatch
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.transform_basis import STEP_BITS, Basis
from trio_ray.model.decoder import Decoder

DEFAULT_DIVERGENCE = 0.002
"""Nats that the first answer token's distribution is expected to move by."""

DEFAULT_RANK = 2048
MAX_LEADS = 256
"""Most text rows ahead of the image that get a mean of their own."""

ROUNDING = 0.5
SEARCHES = 10
"""Halvings of the interval in which a step is looked for."""

COARSEST, FINEST = 1.0, 1e-6


class Answering(Protocol):
    """What calibration needs of a model: a `Replica` has it, and so has a language model."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def stop_tokens(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True)
class Calibration:
    """All that is known of a corpus before a step is chosen.

    Attributes:
        tables: a basis without groups.
        analyses: of the groups.
        samples: how many they saw.
    """

    tables: Basis
    analyses: tuple[Analysis, ...]
    samples: int

    def divergence(self, step: float) -> float:
        """What an answer token's distribution is expected to move by, nats, to second order in the errors."""
        return sum(
            kind.count / self.samples * kind.distortion(step) / 2
            for analysis in self.analyses
            for kind in analysis.kinds
        )

    def basis(self, step: float) -> Basis:
        """The basis for a step: the finer, the less a component's rounding changes the answer's distribution."""
        rounding = round(ROUNDING * (1 << STEP_BITS))
        tables = self.tables
        return Basis(
            model=tables.model,
            kv_heads=tables.kv_heads,
            head_dim=tables.head_dim,
            leads=tables.leads,
            rounding=rounding,
            cosine=tables.cosine,
            sine=tables.sine,
            groups=tuple(quantise(analysis, step, rounding) for analysis in self.analyses),
            notes={**tables.notes, "step": step},
        )


def calibrate(
    replica: Answering,
    prefixes: Sequence[Prefix],
    tails: Sequence[Sequence[int]],
    model: dict[str, str],
    notes: dict[str, Any],
    rank: int = DEFAULT_RANK,
    group_layers: int | None = None,
    on_sample: Callable[[], None] = lambda: None,
) -> Calibration:
    """Learn what the prefixes of a corpus look like.

    Args:
        replica: the model that made them.
        prefixes: the calibration set, in host memory, each without the last rows of its prompt.
        tails: of each prompt the tokens of these rows, at least one.
        model: fingerprint of the model.
        notes: how the set was drawn, kept in the basis for people.
        rank: most components of a group of layers and kind of rows.
        group_layers: most layers that are transformed together; None for as many as `GROUP_CHANNELS` holds.
        on_sample: called behind each prefix.
    """
    decoder = replica.decoder
    information = channel_information(decoder, prefixes, tails, replica.stop_tokens, replica.device, on_sample)
    batch = PrefixBatch.of(prefixes)
    leads = min(MAX_LEADS, max(lead for segment in batch.segments for lead in _leads_before_images(segment)))
    cosine, sine = rotary_tables(decoder.rotary.get_buffer("inv_freq"), decoder.context)
    tables = Basis(model, decoder.kv_heads, decoder.head_dim, leads, 0, cosine, sine, (), notes)
    analyses = []
    most_layers = group_layers or max(1, GROUP_CHANNELS // (2 * decoder.kv_heads * decoder.head_dim))
    for segment, known in zip(batch.segments, information, strict=True):
        for first, layers in groups_of(segment.first_layer, len(segment.keys), most_layers):
            start = first - segment.first_layer
            mine = known[:, start : start + layers].flatten(1).cpu()
            analyses.append(analyse(segment, first, layers, tables, (mine[0], mine[1]), rank))
    return Calibration(tables, tuple(analyses), len(prefixes))


def largest_step(fits: Callable[[float], bool]) -> float | None:
    """The coarsest step, nearly, that fits, where all finer ones do; None if not even the finest does."""
    low, high = math.log(FINEST), math.log(COARSEST)
    if not fits(FINEST):
        return None
    for _ in range(SEARCHES):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(math.exp(middle)) else (low, middle)
    return math.exp(low)


def smallest_step(fits: Callable[[float], bool]) -> float | None:
    """The finest step, nearly, that fits, where all coarser ones do; None if not even the coarsest does."""
    low, high = math.log(FINEST), math.log(COARSEST)
    if not fits(COARSEST):
        return None
    for _ in range(SEARCHES):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _leads_before_images(segment: SegmentBatch) -> list[int]:
    """Lead of each sample that has image rows at all; 0 stands for none of them."""
    return [0, *(lead for lead, images in zip(segment.leads, segment.image_counts, strict=True) if images)]
