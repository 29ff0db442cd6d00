"""The selector that selection must beat: chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.selector import Selector


@dataclass(frozen=True)
class RandomChoice(Selector):
    """Keep tokens at random: an image token's number draws its score, so a sample's choice is the same in every batch.

    Attributes:
        seed: of the draws.
    """

    seed: int = 0

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """See `Selector`."""
        generator = torch.Generator().manual_seed(self.seed)
        # An encoder leaves fewer rows than the image had tokens, so only the numbers themselves say how many draws.
        draws = torch.rand(int(rows.image_index.max().clamp_min(0)) + 1, generator=generator).to(rows.device)
        return draws[rows.image_index.clamp_min(0)]
