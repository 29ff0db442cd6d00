"""The selector that selection must beat: chance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.selector import SuppressingSelector

DRAWS = 1 << 16
"""More than a prompt has image tokens."""


@dataclass(frozen=True)
class RandomChoice(SuppressingSelector):
    """Keeps tokens at random. A token's number decides its score, so a sample's choice is the same in every batch.

    Attributes:
        seed: of the random scores.
    """

    name: ClassVar[str] = "random"
    compared: ClassVar[dict[str, dict[str, Any]]] = {"random + NMS": {"settings": {"threshold": 0.8}}}
    seed: Annotated[int, Field(ge=0, description="Seed of the random scores.")] = 0

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """See `Selector`."""
        draws = _draws(self.seed, rows.device)
        return draws[rows.image_index.clamp_min(0) % DRAWS]


@lru_cache(maxsize=8)
def _draws(seed: int, device: torch.device) -> Tensor:
    """(DRAWS,) numbers on the device; made once, since asking how many are needed would wait for it."""
    return torch.rand(DRAWS, generator=torch.Generator().manual_seed(seed)).to(device)
