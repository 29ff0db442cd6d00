"""What the device reaches on a matrix product alone: the ceiling that shares are of."""

from __future__ import annotations

import torch

from trio_ray.tensors import measure

SIDE = {"cuda": 8192, "cpu": 1024}
REPEATS = {"cuda": 20, "cpu": 2}


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product in `dtype`."""
    side, repeats = SIDE[device.type], REPEATS[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    multiply()
    return 2 * side**3 * repeats / measure(device, multiply).seconds
