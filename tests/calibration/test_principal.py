"""Principal components, exact and by iteration."""

from __future__ import annotations

import pytest
import torch

from trio_ray.calibration.principal import principal_components


def rows(n: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, channels, generator=generator) * 0.8 ** torch.arange(channels)


@pytest.mark.parametrize(("n", "channels"), [(200, 30), (20, 60), (7, 7), (1, 5)])
@pytest.mark.parametrize("exact", [True, False])
def test_components_are_those_of_the_singular_value_decomposition(
    n: int, channels: int, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        monkeypatch.setattr("trio_ray.calibration.principal.EXACT", 0)
    matrix = rows(n, channels)
    components, deviations = principal_components(matrix, most=5)
    _, sizes, directions = torch.linalg.svd(matrix, full_matrices=False)
    count = min(5, n, channels)
    assert components.shape == (count, channels)
    torch.testing.assert_close(deviations, sizes[:count] / n**0.5, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close((components * directions[:count]).sum(1).abs(), torch.ones(count), rtol=1e-3, atol=0)


def test_signs_are_fixed() -> None:
    matrix = rows(50, 10)
    for sign in (1, -1):
        components, _ = principal_components(sign * matrix, most=4)
        assert bool((components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all())


def test_directions_without_variance_are_left_out() -> None:
    matrix = rows(50, 3) @ torch.eye(3, 10)
    components, deviations = principal_components(matrix, most=8)
    assert len(components) == len(deviations) == 3
