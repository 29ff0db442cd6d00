"""The selector that looks at nothing but the tokens' places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.selector import Selector
from trio_ray.tensors import on_device


@dataclass(frozen=True)
class Uniform(Selector):
    """Keeps tokens at even steps through those that are left."""

    name: ClassVar[str] = "uniform"

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """All alike; see `Selector`."""
        return torch.zeros(rows.total, device=rows.device)

    def choose(self, score: Tensor, hidden: Tensor, slots: Tensor, real: Tensor, keep: Sequence[int]) -> Tensor:
        """See `Selector`."""
        return evenly(real, keep)


def evenly(allowed: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
    """(B, N) bool: `counts[s]` of the places where `allowed` ((B, N) bool) is True, at even steps through them.

    Of n places, those where the running share `i * count / n` passes a whole number.
    """
    step = allowed.cumsum(1) - 1
    wanted = (counts if isinstance(counts, Tensor) else on_device(tuple(counts), allowed.device))[:, None]
    places = allowed.sum(1, keepdim=True).clamp_min(1)
    return ((step + 1) * wanted // places > step * wanted // places) & allowed
