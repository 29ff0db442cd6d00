"""VisionZip: fewer tokens behind the vision tower, before the language model sees any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

AUTHORS_CONTEXTUAL = 10 / 64
"""Share of the kept tokens that are merged from others: 10 of 64 in the paper."""


@dataclass(frozen=True)
class VisionZip:
    """Dominant tokens by the class token's attention, and contextual ones merged from the rest (arXiv 2412.04467).

    Attributes:
        contextual: share of the kept tokens that are contextual.
    """

    contextual: float = AUTHORS_CONTEXTUAL

    @property
    def settings(self) -> dict[str, float]:
        """The settings that decide which tokens are kept, by name."""
        return {"contextual": self.contextual}

    def reduce(self, hidden: Tensor, attention: Tensor, keys: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Reduce the N tokens of one image to `keep`, at most N.

        The dominant tokens are those of highest attention. Of the others, evenly spaced ones become contextual tokens:
        each takes in the mean of those whose keys are most similar to its own.

        Args:
            hidden: (N, d) output of the vision tower.
            attention: (N,) of the class token; negative where there is none (newlines), which are taken last.
            keys: (N, d) of the layer that the attention is of.
            keep: number to keep.

        Returns:
            (keep, d) tokens and the (keep,) int64 numbers of the tokens they stand for, ascending.
        """
        if keep >= len(hidden):
            return hidden, torch.arange(len(hidden), device=hidden.device)
        order = attention.sort(descending=True, stable=True).indices
        seen = int((attention >= 0).sum())
        # Where all that the class token sees stay, nothing is left to merge, and newlines fill up.
        wanted = round(self.contextual * keep) if keep < seen else 0
        dominant, rest = order[: keep - wanted], order[keep - wanted : seen].sort().values
        merged, targets = _merge(hidden, keys, rest, wanted)
        index, place = torch.cat([dominant, targets]).sort()
        return torch.cat([hidden[dominant], merged])[place], index


def _merge(hidden: Tensor, keys: Tensor, rest: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Contextual tokens (wanted, d) and the (wanted,) tokens they grew from, of `rest`, which has more than those."""
    if not wanted:
        return hidden[:0], rest[:0]
    is_target = torch.zeros(len(rest), dtype=torch.bool, device=rest.device)
    is_target[torch.arange(wanted, device=rest.device) * len(rest) // wanted] = True
    targets, others = rest[is_target], rest[~is_target]
    unit = F.normalize(keys.float(), dim=-1)
    nearest = (unit[others] @ unit[targets].T).argmax(-1)
    total = torch.zeros(wanted, hidden.shape[1], device=hidden.device).index_add(0, nearest, hidden[others].float())
    count = torch.zeros(wanted, device=hidden.device).index_add(
        0, nearest, torch.ones(len(others), device=hidden.device)
    )
    return hidden[targets] + (total / count.clamp_min(1)[:, None]).to(hidden.dtype), targets
