"""The selector that looks at nothing but places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.selector import Selector


@dataclass(frozen=True)
class Uniform(Selector):
    """Keep tokens at even steps through those that are left."""

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """All alike; see `Selector`."""
        return torch.zeros(rows.total, device=rows.device)

    def choose(self, score: Tensor, hidden: Tensor, real: Tensor, keep: Sequence[int]) -> Tensor:
        """Of n tokens, those where the running share `i * K / n` passes a whole number; see `Selector`."""
        step = torch.arange(score.shape[1], device=score.device)
        wanted = torch.tensor(keep, device=score.device)[:, None]
        count = real.sum(1, keepdim=True).clamp_min(1)
        return ((step + 1) * wanted // count > step * wanted // count) & real
