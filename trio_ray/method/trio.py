"""The TRIO selector: proxy saliency, then non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows, select_rows
from trio_ray.method.saliency import proxy_saliency
from trio_ray.method.suppression import suppress

AUTHORS_ROWS = (-5, -4, -3, -2)
AUTHORS_THRESHOLD = 0.8


@dataclass(frozen=True)
class Selection:
    """What a prune point decides: `rows` (T',) int64 rows that stay, ascending; `saliency` (T,) fp32 of all rows."""

    rows: Tensor
    saliency: Tensor


@dataclass(frozen=True)
class Trio:
    """Keep the visual tokens whose removal would change the model's output (arXiv 2602.04657).

    Attributes:
        supervised: rows whose own prediction is the proxy's label, counted from the prompt's end.
        threshold: cosine similarity from which a token is suppressed by a better one.
    """

    supervised: tuple[int, ...] = AUTHORS_ROWS
    threshold: float = AUTHORS_THRESHOLD

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """Choose `keep[s]` image rows of each sample; text rows always stay.

        Args:
            hidden: (T, d) output of the layers before the prune point.
            rows: layout of the T rows.
            proxy: the layer behind the prune point.
            keep: image rows to keep of each sample, at most the number it has.
        """
        saliency = proxy_saliency(hidden, rows, proxy, self.supervised)
        slots, real = rows.padded_images
        chosen = suppress(saliency[slots], hidden[slots], real, keep, self.threshold)
        stays = ~rows.is_image
        # Padding repeats a real row, so its False must not overwrite that row's True: only additions happen.
        stays = stays.long().scatter_add(0, slots.flatten(), (chosen & real).flatten().long()) > 0
        count = rows.total - sum(rows.image_counts) + sum(keep)
        return Selection(select_rows(stays, count), saliency)
