"""Fit a basis to prefixes: first the statistics of each kind of rows, then the integers for a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from trio_ray.calibration.principal import principal_components
from trio_ray.kv.batch import SegmentBatch
from trio_ray.kv.codecs.transform_bands import BANDS
from trio_ray.kv.codecs.transform_basis import (
    FOLD_BITS,
    INPUT_LIMIT,
    MAX_FOLD,
    MAX_MULTIPLIER,
    ROTATION_BITS,
    STEP_BITS,
    Basis,
    Components,
    Group,
)
from trio_ray.kv.codecs.transform_integers import Chunk, folded, sums_of_products, symbols, whole_rows

GROUP_CHANNELS = 2048
"""Most channels that are transformed together, where one layer has not more: as many as may have components each
(`DEFAULT_RANK`), so that a fit is not short of them. One layer of LLaVA-NeXT-7B."""

HEADROOM = 4.0
"""Inputs are clipped only beyond the largest one seen, multiplied by this."""

IMAGE_ROWS = 16384
"""Upper bound of the image rows of a segment that are read; they are taken at equal distances."""

FINENESS = 32
"""Integers for one step, before the matrix product."""

FAINT = 0.25
"""Components that vary by less than this many steps are left out."""

BAND_LIMITS = (100, 5, 1)
"""For each band behind the first, the largest symbol that its components may have shown: each band holds more than
that.
"""

WEAKEST = 1e-2
"""Lower bound of a channel's weight, relative to the root mean square of all channels: no channel counts as worthless.
"""


TENSORS_OF_A_KIND = ("rows", "means", "weight", "mean", "components", "deviations")


@dataclass(frozen=True)
class Kind:
    """Statistics of the rows of one kind in a group of layers.

    Attributes:
        rows: (n, C) int32, `whole_rows` of the calibration rows.
        means: (n,) int64, which mean each has.
        weight: (C,) fp32, square root of the information in a channel.
        mean: (means, C) fp32.
        peak: largest weighted difference from the mean.
        components: (R, C) fp32 of the weighted differences.
        deviations: (R,) fp32.
        spread: mean square norm of the weighted differences.
        count: rows of the calibration set that differ from the kind's own mean, those not looked at included.
    """

    rows: Tensor
    means: Tensor
    weight: Tensor
    mean: Tensor
    peak: float
    components: Tensor
    deviations: Tensor
    spread: float
    count: int

    def on_device(self, device: torch.device) -> Kind:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in TENSORS_OF_A_KIND}
        return replace(self, **moved)

    def distortion(self, step: float) -> float:
        """Expected square error of a row's weighted differences. Components that are left out count with all their
        variance.
        """
        variances = self.deviations.double().square()
        return self.spread - float((variances - step**2 / 12).clamp_min(0).sum())


@dataclass(frozen=True)
class Analysis:
    """A group of layers before a step is chosen."""

    first_layer: int
    layers: int
    exponent: Tensor
    kinds: tuple[Kind, Kind]

    def on_device(self, device: torch.device) -> Analysis:
        """The same on a device."""
        image, text = (kind.on_device(device) for kind in self.kinds)
        return Analysis(self.first_layer, self.layers, self.exponent.to(device), (image, text))


def groups_of(first_layer: int, layers: int, most: int) -> list[tuple[int, int]]:
    """The groups of a segment as (first layer, number of layers), as even as possible, of `most` layers at most."""
    count = -(-layers // most)
    edges = [first_layer + layers * number // count for number in range(count + 1)]
    return [(start, stop - start) for start, stop in pairwise(edges)]


def analyse(
    batch: SegmentBatch, first: int, layers: int, tables: Basis, information: tuple[Tensor, Tensor], most: int
) -> Analysis:
    """Analyse the rows of a group of layers.

    Args:
        batch: a segment of all calibration prefixes.
        first: first layer of the group.
        layers: how many it has.
        tables: a basis with rotary tables and leads, on the device of the batch; its groups are not read.
        information: (C,) fp32 of image rows and text rows.
        most: components of each kind at most.
    """
    part = slice(first - batch.first_layer, first - batch.first_layer + layers)
    chosen, text = _thinned(batch.text), batch.text
    number = torch.cat([torch.arange(length) for length in batch.lengths]).to(text.device)
    lead = torch.repeat_interleave(torch.tensor(batch.leads), torch.tensor(batch.lengths)).to(text.device)
    means = torch.where(text & (number < lead.clamp_max(tables.leads)), number + 1, 0)
    usual = [int(((means == 0) & mask).sum()) for mask in (~text, text)]
    text, means = text[chosen], means[chosen]
    keys, values = batch.keys[part].index_select(1, chosen), batch.values[part].index_select(1, chosen)
    chunk = Chunk.of(tables, torch.arange(len(chosen), device=text.device), means, batch.position[chosen])
    exponent = _exponents(keys, values, means == 0)
    whole = whole_rows(exponent, keys, values, chunk)
    # Rows ahead of the image may be far larger than the others (sinks): their own means are not clipped.
    roomy = _exponents(keys, values, torch.ones_like(text))
    clear = whole_rows(roomy, keys, values, chunk)
    kinds = []
    for kind, (mask, count) in enumerate(((~text, 1), (text, 1 + tables.leads))):
        mean = _means(clear[mask], means[mask], count) / _size(roomy)
        found = _analyse_kind(whole[mask], means[mask], mean.float(), _size(exponent), information[kind], most)
        kinds.append(replace(found, count=usual[kind]))
    return Analysis(first, layers, exponent, (kinds[0], kinds[1]))


def quantise(analysis: Analysis, step: float, rounding: int) -> Group:
    """The integers of a group for a step, in units of the square root of the answer's divergence."""
    image, text = (_components(kind, analysis.exponent, step, rounding) for kind in analysis.kinds)
    return Group(analysis.first_layer, analysis.layers, analysis.exponent, image, text)


def rotary_tables(inverse_frequency: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """(positions, head_dim / 2) int16 cosine and sine times 2 ** ROTATION_BITS, rounded in float64."""
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * inverse_frequency.double().cpu()
    cosine, sine = ((table * 2.0**ROTATION_BITS).round().to(torch.int16) for table in (angle.cos(), angle.sin()))
    return cosine, sine


def _thinned(text: Tensor) -> Tensor:
    """The numbers of all text rows and of `IMAGE_ROWS` image rows at most, ascending."""
    images = (~text).nonzero().flatten()
    if len(images) > IMAGE_ROWS:
        images = images[torch.arange(IMAGE_ROWS, device=images.device) * len(images) // IMAGE_ROWS]
    return torch.cat([images, text.nonzero().flatten()]).sort().values


def _exponents(keys: Tensor, values: Tensor, usual: Tensor) -> Tensor:
    """(C,) int8 exponents. The two halves of a key, which the rotation mixes, share theirs."""
    largest = torch.stack([x[:, usual].abs().amax(1).float() for x in (keys, values)], 1)  # (layers, 2, heads, dim)
    low, high = largest[:, 0].chunk(2, -1)
    largest[:, 0] = torch.cat([torch.maximum(low, high)] * 2, -1) * 2**0.5
    room = INPUT_LIMIT / (HEADROOM * largest.clamp_min(1e-12))
    return (torch.frexp(room).exponent - 1).clamp(-60, 60).to(torch.int8).flatten()


def _size(exponent: Tensor) -> Tensor:
    """(C,) fp32, the integer that stands for 1."""
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent.int())


def _means(rows: Tensor, means: Tensor, count: int) -> Tensor:
    """(count, C) fp64: for each number in `means` (n,), the mean of the rows (n, C) that have it; the first mean where
    no row has it.
    """
    found = torch.zeros((count, rows.shape[1]), dtype=torch.float64, device=rows.device)
    for number in range(count):
        mine = rows[means == number]
        found[number] = mine.double().mean(0) if len(mine) else found[0]
    return found


def _analyse_kind(rows: Tensor, means: Tensor, mean: Tensor, size: Tensor, information: Tensor, most: int) -> Kind:
    """`rows` (n, C) int32, `means` (n,) which row of `mean` (means, C) fp32 is theirs, `size` see `_size`."""
    weight = information.to(rows.device).sqrt()
    weight = weight.clamp_min(WEAKEST * weight.square().mean().sqrt()).clamp_min(torch.finfo(torch.float32).tiny)
    usual = rows[means == 0]
    weighted = (usual.float() / size - mean[0]) * weight
    if len(usual):
        components, deviations = principal_components(weighted, most)
    else:
        components, deviations = weighted.new_zeros(0, len(size)), weighted.new_zeros(0)
    peak = float(weighted.abs().max()) if len(usual) else 0.0
    spread = float(weighted.double().square().sum(1).mean()) if len(usual) else 0.0
    return Kind(rows, means, weight, mean, peak, components, deviations, spread, len(usual))


def _components(kind: Kind, exponent: Tensor, step: float, rounding: int) -> Components:
    chosen = kind.components[kind.deviations > FAINT * step]
    unit = min(max(step / FINENESS, 2 * kind.peak / INPUT_LIMIT), step / 2)
    size = _size(exponent)
    fold = (kind.weight / (unit * size) * 2.0**FOLD_BITS).round().clamp(1, MAX_FOLD).int()
    scale = chosen.abs().amax(1) / 127
    multiplier = (unit * scale.double() / step * 2.0**STEP_BITS).round().clamp(1, MAX_MULTIPLIER).int()
    center = (kind.mean[0] * size).round().clamp(-INPUT_LIMIT, INPUT_LIMIT).int()
    matrix = (chosen / scale[:, None]).round().to(torch.int8)
    sums = sums_of_products(folded(kind.rows, center, fold), matrix)
    offset = _means(sums, kind.means, len(kind.mean)).round().long()
    part = Components((0, 0, 0, 0), center, fold, matrix, multiplier, offset, kind.mean)
    return _sorted(part, symbols(kind.rows, part, kind.means, rounding))


def _sorted(part: Components, found: Tensor) -> Components:
    """Components by the largest symbol that was found, widest first, without those that never had one but 0."""
    largest = found.abs().amax(0) if len(found) else found.new_zeros(found.shape[1])
    order = largest.argsort(descending=True, stable=True)
    order = order[largest[order] > 0]
    ordered = largest[order].tolist()
    ends = [sum(value > limit for value in ordered) for limit in (*BAND_LIMITS, 0)]
    counts = [stop - start for start, stop in pairwise([0, *ends])]
    return Components(
        counts=tuple(counts),
        center=part.center,
        fold=part.fold,
        matrix=part.matrix[order],
        multiplier=part.multiplier[order],
        offset=part.offset[:, order],
        mean=part.mean,
    )


def component_count(groups: Sequence[Group]) -> dict[str, int]:
    """The components of all groups, by band."""
    return {
        band.name: sum(part.counts[number] for group in groups for part in group.kinds)
        for number, band in enumerate(BANDS)
    }
