"""The inverse transform in 8-bit products, against the same in fp32."""

from __future__ import annotations

import pytest
import torch

from trio_ray.kv.codecs.transform_bands import BANDS, pack
from trio_ray.kv.codecs.transform_inverse import ByteInverse, GroupInverse, has_exact_bytes

CHANNELS = 512

pytestmark = pytest.mark.skipif(not has_exact_bytes(), reason="this CPU has no exact 8-bit products")


def made_up_inverse(counts: tuple[int, ...]) -> GroupInverse:
    """Orthogonal components, one step long each, as a calibrated basis has them."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(CHANNELS, sum(counts), generator=generator, dtype=torch.float64)
    matrix = torch.linalg.qr(square).Q.T.float()
    return GroupInverse(counts, 1, matrix, torch.ones(CHANNELS), torch.randn(2, CHANNELS, generator=generator))


@pytest.mark.parametrize(
    ("counts", "spread", "steps"),
    [
        ((0, 200, 0, 0), (0, 40, 0, 0), 2e-3),
        ((4, 100, 100, 100), (3000, 20, 2, 0.4), 0.02),
        ((0, 0, 100, 103), (0, 0, 2, 0.5), 0.02),
        ((3, 0, 0, 0), (3000, 0, 0, 0), 1e-2),
        ((0, 0, 0, 0), (0, 0, 0, 0), 1e-5),
    ],
)
def test_states_are_those_of_fp32_but_for_a_small_part_of_a_step(
    counts: tuple[int, ...], spread: tuple[float, ...], steps: float
) -> None:
    """Rounding a component to whole steps alone makes an error of 0.29 steps."""
    generator = torch.Generator().manual_seed(1)
    parts = [
        (size * torch.randn(300, count, generator=generator)).round().long().clamp(-band.limit, band.limit)
        for band, count, size in zip(BANDS, counts, spread, strict=True)
    ]
    packed, mean = pack(torch.cat(parts, 1), counts), torch.arange(300) % 2
    exact = made_up_inverse(counts)
    found, truth = ByteInverse.of(exact).states(packed, mean), exact.states(packed, mean)
    # The components are orthogonal, so their errors add up to those of the channels.
    error = (found - truth).double().square().sum(1).mean() / max(sum(counts), 1)
    assert float(error.sqrt()) <= steps
