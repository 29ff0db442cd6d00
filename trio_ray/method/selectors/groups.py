"""A selector that knows no question: groups of like tokens, each of which keeps its own representatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows, Positions
from trio_ray.method.schedule import ScheduleShape
from trio_ray.method.selectors.selector import Selection, Selector, Threshold
from trio_ray.method.selectors.trio import AUTHORS_THRESHOLD
from trio_ray.method.selectors.trio_plus import PLUS_SHAPE, Share, salient_and_even
from trio_ray.method.suppression import NO_SUPPRESSION

ITERATIONS = 4
"""Of the subspace iteration; the groups need the directions roughly."""


@dataclass(frozen=True)
class Groups(Selector):
    """Keeps tokens of every group of like tokens, most typical first (from the idea of PruneSID, arXiv 2603.09480).

    The groups are the two ends of an image's first principal directions; a token belongs to the one that it reaches
    furthest along. The groups take turns; each offers its most typical token that resembles none that is kept. A group
    whose tokens are all alike is soon used up and leaves its turns to the others, so the image decides the budgets.

    Attributes:
        directions: principal directions; there are twice as many groups.
        threshold: cosine similarity from which a better row suppresses another one.
        first_sample: share of evenly taken tokens at a sample's first prune.
        later_sample: the same at later prunes.
    """

    name: ClassVar[str] = "groups"
    shape: ClassVar[ScheduleShape] = PLUS_SHAPE
    positions: ClassVar[Positions] = "original"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "directions": (4, 8, 16),
        "first_sample": (0.0, 0.25, 0.5, 0.75),
        "later_sample": (0.0, 0.25, 0.5),
        "threshold": (0.7, AUTHORS_THRESHOLD, 0.9, NO_SUPPRESSION),
    }
    directions: Annotated[int, Field(ge=1, description="Principal directions; there are twice as many groups.")] = 16
    threshold: Threshold = AUTHORS_THRESHOLD
    first_sample: Annotated[
        Share, Field(description="Share of the kept tokens that are taken at even steps at a sample's first prune.")
    ] = 0.75
    later_sample: Annotated[Share, Field(description="The same share at every later prune.")] = 0.25

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """Minus the place in the token's group, and less than 1 for how typical it is; see `Selector`."""
        slots, real = rows.padded_images
        along = _directions(_centred(hidden[slots], real), self.directions)
        strength, group = torch.cat((along, -along), dim=-1).max(-1)
        turns = _places_in_groups(strength, torch.where(real, group, 2 * self.directions))
        score = torch.where(real, strength / (1 + strength) - turns, float("-inf"))
        # Padding repeats a real row, which must keep its own score.
        return hidden.new_full((rows.total,), float("-inf"), dtype=torch.float32).scatter_reduce(
            0, slots.flatten(), score.flatten(), "amax"
        )

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """The groups' tokens by turns, the rest at even steps; see `Selector`."""
        score = self.score(hidden, rows, proxy)
        shares = (self.first_sample, self.later_sample)
        chosen = salient_and_even(score, hidden, rows, keep, shares, self.threshold, self.speculation)
        return self.keep_chosen(rows, chosen, keep, score)


def _centred(tokens: Tensor, real: Tensor) -> Tensor:
    """(B, N, d) fp32: `tokens` at length 1, less their sample's mean; 0 where padded."""
    unit = F.normalize(tokens.float(), dim=-1) * real[..., None]
    mean = unit.sum(1, keepdim=True) / real.sum(1).clamp_min(1)[:, None, None]
    return (unit - mean) * real[..., None]


def _directions(tokens: Tensor, count: int) -> Tensor:
    """(B, N, count): each token along its sample's first principal directions, by subspace iteration."""
    start = torch.randn(tokens.shape[-1], min(count, tokens.shape[-1]), generator=torch.Generator().manual_seed(0))
    basis = start.to(tokens.device).expand(len(tokens), -1, -1)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(tokens.transpose(1, 2) @ (tokens @ basis)).Q
    return tokens @ basis


def _places_in_groups(strength: Tensor, group: Tensor) -> Tensor:
    """(B, N) fp32: how many of the token's own group are stronger. `strength` lies in -1 .. 1."""
    order = (4.0 * group - strength).argsort(dim=1, stable=True)
    sorted_group = group.gather(1, order)
    starts = torch.searchsorted(sorted_group, sorted_group, right=False)
    steps = torch.arange(group.shape[1], device=group.device).expand_as(group)
    return torch.empty_like(strength).scatter_(1, order, (steps - starts).to(strength.dtype))
