"""trio-plus: TRIO's gradient with every supervised row heard, a sample of what it passes over, and places kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.saliency import proxy_saliency
from trio_ray.method.selector import Positions, Selection, Selector
from trio_ray.method.suppression import suppress
from trio_ray.method.trio import AUTHORS_THRESHOLD
from trio_ray.method.uniform import evenly

PLUS_ROWS = (-5, -4, -3, -2, -1)


@dataclass(frozen=True)
class TrioPlus(Selector):
    """A training-free change of TRIO, found on rendered scenes (README, 'trio-plus'). It differs in four things.

    - The row that predicts the answer is supervised too, and all supervised rows weigh alike (`balanced`).
    - A share of what is kept is taken at even steps from the tokens that the score passes over. Attention averages, so
      a set of nothing but salient tokens changes every proportion that a model may count by.
    - Kept rows stay at their positions in the unpruned prompt: where a thing is, and what is left of it, survives.
    - Its default schedule begins to drop before layer 0 and goes in smaller steps (`schedule.PLUS_PRUNE_POINTS`).

    Attributes:
        supervised: rows whose own prediction is the proxy's label, counted from the prompt's end.
        first_sample: share of evenly taken tokens at a sample's first prune, where little is known yet.
        later_sample: the same at later prunes.
    """

    threshold: float = AUTHORS_THRESHOLD
    positions: Positions = "original"
    supervised: tuple[int, ...] = PLUS_ROWS
    first_sample: float = 0.75
    later_sample: float = 0.25

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """See `Selector`."""
        return proxy_saliency(hidden, rows, proxy, self.supervised, balanced=True)

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """The salient share by suppression, the rest at even steps; see `Selector`."""
        score = self.score(hidden, rows, proxy)
        slots, real = rows.padded_images
        salient = [
            max(1, round((1 - (self.first_sample if length == end else self.later_sample)) * count)) if count else 0
            for length, end, count in zip(rows.lengths, rows.ends, keep, strict=True)
        ]
        chosen = suppress(score[slots], hidden, slots, real, salient, self.threshold, self.haste)
        sampled = [count - share for count, share in zip(keep, salient, strict=True)]
        chosen = chosen | evenly(real & ~chosen, sampled)
        return self.keep_chosen(rows, chosen & real, keep, score)
