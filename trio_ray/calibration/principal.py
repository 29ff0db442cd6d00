"""Principal components of many or few rows, the same ones in every run."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = 3072
"""Up to this many rows or channels, the whole spectrum is computed. Beyond that, iteration finds the first components.
"""

OVERSAMPLING = 32
ITERATIONS = 3


def principal_components(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The directions in which rows vary most, and their standard deviations.

    Beyond `EXACT`, subspace iteration from a fixed random start (Halko, Martinsson and Tropp, arXiv 0909.4061).

    Args:
        rows: (n, C) fp32, their mean taken off.
        most: components wanted.

    Returns:
        (R, C) fp32 orthonormal, R <= min(most, n, C), the largest entry of each positive, and their (R,) fp32 standard
        deviations, descending.
    """
    n, channels = rows.shape
    if min(n, channels) > EXACT:
        basis = _subspace(rows, min(most + OVERSAMPLING, n, channels))
        inner, deviations = _exact(rows @ basis)
        components = inner @ basis.T
    else:
        components, deviations = _exact(rows)
    components, deviations = components[:most], deviations[:most]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return components * largest.sign(), deviations


def _exact(rows: Tensor) -> tuple[Tensor, Tensor]:
    n, channels = rows.shape
    wide = rows.double()
    if n < channels:
        values, vectors = torch.linalg.eigh(wide @ wide.T)
        vectors = wide.T @ vectors / values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    else:
        values, vectors = torch.linalg.eigh(wide.T @ wide)
    real = values > values[-1:].clamp_min(torch.finfo(torch.float64).tiny) * 1e-10
    values, vectors = values[real].flip(0), vectors[:, real].flip(1)
    return vectors.T.float(), (values / max(n, 1)).sqrt().float()


def _subspace(rows: Tensor, size: int) -> Tensor:
    """(C, size) orthonormal, close to the span of the first components."""
    start = torch.randn(rows.shape[1], size, generator=torch.Generator().manual_seed(0)).to(rows.device)
    basis = start
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
    return basis
