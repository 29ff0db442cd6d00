"""trio-plus: TRIO's gradient, all supervised rows weighted alike, an even sample of the rest, positions kept."""

from __future__ import annotations

from collections.abc import Sequence
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
from trio_ray.method.suppression import NO_SUPPRESSION, suppress

PLUS_ROWS = (-5, -4, -3, -2, -1)

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
    shape: ClassVar[ScheduleShape] = ScheduleShape(16, prune_points=(0, 1, 2, 4, 6, 9), weights=(100, 75, 55, 40, 9, 4))
    positions: ClassVar[Positions] = "original"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "first_sample": (0.0, 0.25, 0.5, 0.75, 1.0),
        "later_sample": (0.0, 0.25, 0.5, 0.75),
        "supervised_rows": (AUTHORS_ROWS, PLUS_ROWS, (-1,)),
        "threshold": (0.7, AUTHORS_THRESHOLD, 0.9, NO_SUPPRESSION),
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
        slots, real = rows.padded_images
        salient = [
            max(1, round((1 - (self.first_sample if length == end else self.later_sample)) * count)) if count else 0
            for length, end, count in zip(rows.lengths, rows.ends, keep, strict=True)
        ]
        chosen = suppress(score[slots], hidden, slots, real, salient, self.threshold, self.speculation)
        sampled = [count - share for count, share in zip(keep, salient, strict=True)]
        chosen = chosen | evenly(real & ~chosen, sampled)
        return self.keep_chosen(rows, chosen & real, keep, score)
