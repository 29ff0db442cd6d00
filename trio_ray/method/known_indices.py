"""The selector that has nothing to decide: tokens that an earlier run has chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows, select_rows
from trio_ray.method.selectors.selector import Selection, Selector
from trio_ray.tensors import to_device


@dataclass(frozen=True)
class KnownIndices(Selector):
    """Keeps image tokens that an earlier run has chosen, for one batch. No layer judges anything, so a prune point
    costs a lookup.

    Attributes:
        kept: per sample of the batch, in order, and per prune point (K,) int, indices into the sample's original image
            tokens, on the CPU.
    """

    kept: tuple[tuple[Tensor, ...], ...] = ()

    def budgets(self) -> list[tuple[int, ...]]:
        """Image rows left of each sample behind each prune point."""
        return [tuple(len(indices) for indices in points) for points in self.kept]

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """No token is judged, so all scores are alike; see `Selector`."""
        return torch.zeros(rows.total, device=rows.device)

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """The known tokens of the first prune point that leaves `keep[s]` of each sample; see `Selector`.

        Where several points leave as many, they leave the same: tokens that are dropped do not come back.
        """
        point = list(zip(*self.budgets(), strict=True)).index(tuple(keep))
        indices = [points[point].long() for points in self.kept]
        width = 1 + max((int(run[-1]) for run in indices if len(run)), default=0)
        known = torch.zeros(len(indices), width + 1, dtype=torch.bool)  # the last column stands for all beyond
        for sample, run in enumerate(indices):
            known[sample, run] = True
        stays = ~rows.is_image | to_device(known, rows.device)[rows.sample, rows.image_index.clamp(0, width)]
        texts = rows.total - sum(rows.image_counts)
        return Selection(select_rows(stays, texts + sum(keep)), self.score(hidden, rows, proxy))
