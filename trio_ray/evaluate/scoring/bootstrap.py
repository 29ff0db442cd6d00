"""Bootstrap confidence intervals of a mean over questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


def interval(
    right: NDArray[np.bool_] | NDArray[np.float64],
    scenes: Sequence[int],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap confidence interval of an accuracy, or of another mean over questions.

    Draws whole scenes: questions about one image hang together.
    """
    _, group = np.unique(np.asarray(scenes), return_inverse=True)
    asked = np.bincount(group)
    hits = np.bincount(group, weights=right)
    draws = np.random.default_rng(seed).integers(len(asked), size=(resamples, len(asked)))
    shares = hits[draws].sum(1) / asked[draws].sum(1)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
