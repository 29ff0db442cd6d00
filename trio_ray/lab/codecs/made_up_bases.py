"""Bases of the transform codec for the benchmark's made-up states. Their sizes are those that a wanted ratio needs;
they say nothing about how closely real states can be coded with as many components.

How closely real states can be coded in so many components is not known from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trio_ray.calibration.calibrate import Calibration, learn, smallest_step
from trio_ray.calibration.fit import rotary_tables
from trio_ray.errors import ConfigError
from trio_ray.estimate.made_up_states import Geometry, prefix_batch
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.registry import full_spec
from trio_ray.kv.codecs.transform import Transform, TransformSpec
from trio_ray.kv.codecs.transform_basis import Basis, write_basis
from trio_ray.kv.container import checksum
from trio_ray.lab.codecs.recipes import TRANSFORM, Fit
from trio_ray.lab.codecs.speed import container_sizes

SAMPLES, SEED = 24, 1
"""Samples of the calibration set. None of them is measured, and they are enough for the rank where the fewest rows are
left.
"""

CLOSE_ENOUGH = 1.1
"""A ratio was out of reach if the result differs from it by more than this factor."""


def layers_together(fit: Fit, geometry: Geometry, batch: PrefixBatch) -> int:
    """Layers of a group: as the fit says, or else as many that a row's components, one a byte, are the ratio smaller
    than its 16-bit channels.
    """
    rows = min(sum(segment.image_counts) for segment in batch.segments)
    channels = fit.ratio * min(fit.rank, rows) / 2
    return fit.group_layers or max(1, int(channels) // (geometry.row_bytes(1) // 2))


def fit_transform(
    spec: Mapping[str, Any], fit: Fit, geometry: Geometry, measured: PrefixBatch
) -> tuple[Transform, bytes]:
    """The codec and its basis, fitted on the device of the states that are measured.

    Args:
        spec: settings of the codec without a basis.
        fit: what is wanted.
        geometry: of the states.
        measured: prefixes whose containers are to have the ratio.

    Raises:
        ConfigError: the ratio cannot be had with so many components; names `--codecs`.
    """
    known = _calibration(fit, geometry, measured.top_ids.device)
    plain = sum(prefix.kv_bytes for prefix in measured.split())

    def codec_of(basis: Basis, digest: str) -> Transform:
        settings = full_spec({**spec, "basis": digest})
        return Transform(TransformSpec(**settings), basis)

    def ratio_of(step: float) -> float:
        return plain / sum(container_sizes(measured, codec_of(known.basis(step), "0" * 32)))

    step = smallest_step(lambda step: ratio_of(step) >= fit.ratio)
    if step is None:
        raise ConfigError("--codecs", f"{TRANSFORM}: no step reaches ratio {fit.ratio:g}; lower rank, or ratio")
    if ratio_of(step) > CLOSE_ENOUGH * fit.ratio:
        raise ConfigError("--codecs", f"{TRANSFORM}: ratio {fit.ratio:g} needs a higher rank or fewer group_layers")
    basis = known.basis(step)
    data = write_basis(basis)
    return codec_of(basis, checksum(data)), data


def _calibration(fit: Fit, geometry: Geometry, device: torch.device) -> Calibration:
    batch = prefix_batch(geometry, SAMPLES, device, SEED)
    information = [
        torch.ones((2, len(segment.keys), 2, *segment.keys.shape[2:]), device=device) for segment in batch.segments
    ]
    # Made-up keys are the same at every position, as a model's are before their rotation.
    rotary = rotary_tables(torch.zeros(geometry.head_dim // 2), geometry.most + geometry.lead + geometry.tail)
    layers = layers_together(fit, geometry, batch)
    return learn(batch, information, rotary, {}, {"states": "made up"}, fit.rank, layers, device)
