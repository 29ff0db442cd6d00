"""How much a model still reads from its image rows, layer by layer, and the schedule that follows from it.

Models move what they have seen into the rows behind the image at different depths. The profile says where: for each
layer, how far answers move if the image is gone from that layer on. No labels are needed. A schedule that keeps rows
in proportion to a root of it fits a model about which nothing else is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import fmean

import numpy as np

from trio_ray.calibration.answer_divergence import ReferenceBatch
from trio_ray.config import MethodConfig
from trio_ray.method.schedule import ScheduleShape
from trio_ray.model.replica import Replica

PROBES = 16
"""Layers that are measured, at most."""

STEPS = (0.8, 0.6, 0.4, 0.2, 0.06, 0.02)
"""Tokens are dropped where the root of the profile falls below these shares of its first value."""

LEAST_WEIGHT = 0.02
"""Of the largest weight: no layer is left with nothing, however little it reads."""


def depth_profile(replica: Replica, batches: Sequence[ReferenceBatch], config: MethodConfig) -> list[float]:
    """For each layer, the divergence (nats an answer token) where it and all behind it hold one image token, and all
    before it every one. Of deep models only some layers are measured, and those between are interpolated.

    Args:
        replica: the model.
        batches: whose answers are compared. What an image's absence does is large, so a few samples tell.
        config: the method; its share of layers that run on all tokens, its selector and positions are used.
    """
    depth = replica.decoder.depth
    layers = sorted({probe * depth // PROBES for probe in range(PROBES)})
    bare = {"keep": (1,), "retention": None, "tokens": None, "weights": None}
    methods = [config.model_copy(update={**bare, "prune_points": (layer,)}).build(depth) for layer in layers]
    found = [batch.divergences(replica, methods) for batch in batches]
    means = [fmean(value for of_batch in of_layer for value in of_batch) for of_layer in zip(*found, strict=True)]
    return np.interp(range(depth), layers, means).tolist()


def profile_shape(profile: Sequence[float], power: float) -> ScheduleShape:
    """The schedule whose weights are proportional to a power of the profile, with one prune point for each step that it
    falls.

    If what answers lose by the pruning of a layer is its part of the profile divided by the rows that it keeps, to the
    power n, then 1 / (n + 1) is the power of the best one.

    Args:
        profile: of `depth_profile`; the first value is positive.
        power: between 0 and 1.
    """
    falling = list(accumulate((max(value, 0.0) ** power for value in profile), min))
    shares = [value / falling[0] for value in falling]
    passed = [sum(share < step for step in STEPS) for share in shares]
    points = [0, *(layer for layer in range(1, len(shares)) if passed[layer] > passed[layer - 1])]
    runs = pairwise([*points, len(shares)])
    weights = tuple(max(LEAST_WEIGHT, round(fmean(shares[start:stop]), 4)) for start, stop in runs)
    return ScheduleShape(len(profile), tuple(points), weights)
