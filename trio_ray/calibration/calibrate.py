"""From calibration prefixes to a basis: information, components, and the step that gives a wanted size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from trio_ray.calibration.fit import GROUP_CHANNELS, Analysis, analyse, groups_of, quantise, rotary_tables
from trio_ray.calibration.information import channel_information
from trio_ray.kv.batch import PrefixBatch, SegmentBatch
from trio_ray.kv.codecs.transform_basis import STEP_BITS, Basis
from trio_ray.kv.prefix import Prefix
from trio_ray.model.decoder import Decoder

DEFAULT_RANK = 2048
MAX_LEADS = 256
"""Upper bound of the text rows ahead of the image that get a mean of their own."""

ROUNDING = 0.5
SEARCHES = 10
"""How often the interval in which a step is searched is halved."""

COARSEST, FINEST = 1.0, 1e-6


class Answering(Protocol):
    """What calibration needs from a model. A `Replica` offers it, and so does a language model."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def stop_tokens(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True)
class Calibration:
    """Everything that is known about a corpus before a step is chosen.

    Attributes:
        tables: a basis without groups.
        analyses: of the groups, in host memory: of a large model they are some gigabytes each.
        samples: how many they saw.
        device: where a basis is made of them, one group at a time.
    """

    tables: Basis
    analyses: tuple[Analysis, ...]
    samples: int
    device: torch.device

    def divergence(self, step: float) -> float:
        """The divergence that a step is expected to cause in an answer token's distribution: nats, to second order in
        the errors.
        """
        return sum(
            kind.count / self.samples * kind.distortion(step) / 2
            for analysis in self.analyses
            for kind in analysis.kinds
        )

    def basis(self, step: float) -> Basis:
        """Make the basis for a step. A finer step rounds components less, so that the answer's distribution changes
        less.
        """
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
            groups=tuple(quantise(analysis.on_device(self.device), step, rounding) for analysis in self.analyses),
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
    rotary = rotary_tables(decoder.rotary.get_buffer("inv_freq"), decoder.context)
    return learn(PrefixBatch.of(prefixes), information, rotary, model, notes, rank, group_layers, replica.device)


def learn(
    batch: PrefixBatch,
    information: Sequence[Tensor],
    rotary: tuple[Tensor, Tensor],
    model: dict[str, str],
    notes: dict[str, Any],
    rank: int,
    group_layers: int | None,
    device: torch.device,
) -> Calibration:
    """Calibrate where the information on the channels is known already.

    Args:
        batch: the calibration set, anywhere.
        information: by segment, see `channel_information`.
        rotary: the model's `rotary_tables`.
        model, notes, rank, group_layers: see `calibrate`.
        device: does the work, one group of layers at a time.
    """
    heads, dim = batch.segments[0].keys.shape[2:]
    leads = min(MAX_LEADS, max(lead for segment in batch.segments for lead in _leads_before_images(segment)))
    cosine, sine = (table.to(device) for table in rotary)
    tables = Basis(model, heads, dim, leads, 0, cosine, sine, (), notes)
    analyses = []
    most_layers = group_layers or max(1, GROUP_CHANNELS // (2 * heads * dim))
    for segment, known in zip(batch.segments, information, strict=True):
        for first, layers in groups_of(segment.first_layer, len(segment.keys), most_layers):
            start = first - segment.first_layer
            mine = known[:, start : start + layers].flatten(1).to(device)
            found = analyse(_on_device(segment, first, layers, device), first, layers, tables, (mine[0], mine[1]), rank)
            analyses.append(found.on_device(torch.device("cpu")))
    return Calibration(tables, tuple(analyses), len(batch.lengths), device)


def largest_step(fits: Callable[[float], bool]) -> float | None:
    """About the coarsest step that fits, if all finer ones fit, too; None if not even the finest one fits."""
    low, high = math.log(FINEST), math.log(COARSEST)
    if not fits(FINEST):
        return None
    for _ in range(SEARCHES):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(math.exp(middle)) else (low, middle)
    return math.exp(low)


def smallest_step(fits: Callable[[float], bool]) -> float | None:
    """About the finest step that fits, if all coarser ones fit, too; None if not even the coarsest one fits."""
    low, high = math.log(FINEST), math.log(COARSEST)
    if not fits(COARSEST):
        return None
    for _ in range(SEARCHES):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _on_device(segment: SegmentBatch, first: int, layers: int, device: torch.device) -> SegmentBatch:
    """Some layers of a segment on a device."""
    part = slice(first - segment.first_layer, first - segment.first_layer + layers)
    moved = {name: getattr(segment, name)[part].to(device) for name in ("keys", "values")}
    return replace(
        segment, first_layer=first, position=segment.position.to(device), text=segment.text.to(device), **moved
    )


def _leads_before_images(segment: SegmentBatch) -> list[int]:
    """The lead of each sample that has image rows; 0 stands for a sample without any."""
    return [0, *(lead for lead, images in zip(segment.leads, segment.image_counts, strict=True) if images)]
