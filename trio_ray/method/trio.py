"""TRIO: proxy saliency, then non-maximum suppression."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.saliency import proxy_saliency
from trio_ray.method.selector import Positions, Selector

AUTHORS_ROWS = (-5, -4, -3, -2)
AUTHORS_THRESHOLD = 0.8


@dataclass(frozen=True)
class Trio(Selector):
    """Keep the visual tokens whose removal would change the model's output (arXiv 2602.04657).

    Attributes:
        supervised: rows whose own prediction is the proxy's label, counted from the prompt's end.
    """

    threshold: float = AUTHORS_THRESHOLD
    positions: Positions = "compact"
    supervised: tuple[int, ...] = AUTHORS_ROWS

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """See `Selector`."""
        return proxy_saliency(hidden, rows, proxy, self.supervised)
