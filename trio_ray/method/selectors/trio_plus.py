"""trio-plus: TRIO's gradient, all supervised rows weighted alike, an even sample of the rest, positions kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows, Positions
from trio_ray.method.saliency import proxy_saliency
from trio_ray.method.schedule import ScheduleShape
from trio_ray.method.selectors.selector import Selection, Selector, Threshold
from trio_ray.method.selectors.trio import AUTHORS_ROWS, AUTHORS_THRESHOLD, SupervisedRows
from trio_ray.method.selectors.uniform import evenly
from trio_ray.method.suppression import NO_SUPPRESSION, Speculation, suppress

PLUS_ROWS = (-5, -4, -3, -2, -1)

PLUS_SHAPE = ScheduleShape(16, prune_points=(0, 1, 2, 4, 6, 9), weights=(100, 75, 55, 40, 9, 4))

PLUS_FULL_DEPTH_SHAPE = ScheduleShape(16, prune_points=(0, 1, 2, 4, 6, 10), weights=(100, 80, 60, 40, 20, 2))
"""Rows that have read all tokens are worth keeping until later. Even samples at later prunes bring nothing then."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class TrioPlus(Selector):
    """A training-free change of TRIO, found on rendered scenes. It differs in four things.

    - The row that predicts the answer is supervised too, and all supervised rows weigh alike (`balanced`).
    - A share of what is kept is taken at even steps from the tokens that the score passes over. Attention averages, so
      a set of nothing but salient tokens changes every proportion that a model may count by.
    - Kept rows stay at their positions in the unpruned prompt: where a thing is, and what is left of it, survives.
    - Its default schedule begins to drop before layer 0 and goes in smaller steps, with next to nothing left late.

    Attributes:
        threshold: cosine similarity from which a better row suppresses another one.
        supervised_rows: rows whose own prediction is the proxy's label, counted from the prompt's end.
        first_sample: share of evenly taken tokens at a sample's first prune, where little is known yet.
        later_sample: the same at later prunes.
    """

    name: ClassVar[str] = "trio-plus"
    shape: ClassVar[ScheduleShape] = PLUS_SHAPE
    full_depth_shape: ClassVar[ScheduleShape | None] = PLUS_FULL_DEPTH_SHAPE
    full_depth_settings: ClassVar[Mapping[str, Any]] = {"later_sample": 0.0}
    positions: ClassVar[Positions] = "original"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "first_sample": (0.0, 0.25, 0.5, 0.75, 0.9, 1.0),
        "later_sample": (0.0, 0.25, 0.5, 0.75),
        "supervised_rows": (AUTHORS_ROWS, PLUS_ROWS, (-1,)),
        "threshold": (0.6, 0.7, AUTHORS_THRESHOLD, 0.9, NO_SUPPRESSION),
    }
    threshold: Threshold = AUTHORS_THRESHOLD
    supervised_rows: SupervisedRows = PLUS_ROWS
    first_sample: Annotated[
        Share, Field(description="Share of the kept tokens that are taken at even steps at a sample's first prune.")
    ] = 0.75
    later_sample: Annotated[Share, Field(description="The same share at every later prune.")] = 0.25

    @property
    def proxy_rows(self) -> int:
        """See `Selector`."""
        return len(self.supervised_rows)

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """See `Selector`."""
        return proxy_saliency(hidden, rows, proxy, self.supervised_rows, balanced=True)

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """The salient share by suppression, the rest at even steps; see `Selector`."""
        score = self.score(hidden, rows, proxy)
        shares = (self.first_sample, self.later_sample)
        chosen = salient_and_even(score, hidden, rows, keep, shares, self.threshold, self.speculation)
        return self.keep_chosen(rows, chosen, keep, score)


def salient_and_even(
    score: Tensor,
    hidden: Tensor,
    rows: PackedRows,
    keep: Sequence[int],
    shares: tuple[float, float],
    threshold: float,
    speculation: Speculation | None,
) -> Tensor:
    """Choose the best scores by suppression, and a share at even steps from those that the score passes over.

    Args:
        score: (T,) fp32.
        hidden: (T, d), what similarity is measured on.
        rows: their layout.
        keep: image rows that each sample keeps.
        shares: of the evenly taken tokens, at a sample's first prune and at later ones.
        threshold: of suppression.
        speculation: see `suppress`.

    Returns:
        (B, N) bool, of `rows.padded_images`.
    """
    slots, real = rows.padded_images
    salient = [
        max(1, round((1 - shares[0 if length == end else 1]) * count)) if count else 0
        for length, end, count in zip(rows.lengths, rows.ends, keep, strict=True)
    ]
    chosen = suppress(score[slots], hidden, slots, real, salient, threshold, speculation)
    sampled = [count - share for count, share in zip(keep, salient, strict=True)]
    return (chosen | evenly(real & ~chosen, sampled)) & real
