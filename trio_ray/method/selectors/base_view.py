"""What a smaller image would give: tokens of the base view alone, thinned out evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.selector import Selection, Selector
from trio_ray.method.selectors.uniform import evenly
from trio_ray.tensors import on_device


@dataclass(frozen=True)
class BaseView(Selector):
    """Plain downsampling: keeps tokens at even steps through the base view, and tiles only where that is used up.

    Attributes:
        view_tokens: tokens of the base view; they come first in an image.
    """

    name: ClassVar[str] = "base-view"
    view_tokens: Annotated[int, Field(ge=1, description="Tokens of the base view: (side / patch) squared.")] = 576

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """1 in the base view, 0 in the tiles; see `Selector`."""
        return ((rows.image_index >= 0) & (rows.image_index < self.view_tokens)).float()

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """See `Selector`."""
        score = self.score(hidden, rows, proxy)
        slots, real = rows.padded_images
        base = real & (score[slots] > 0)
        wanted = on_device(tuple(keep), base.device)
        ours = torch.minimum(wanted, base.sum(1))
        chosen = evenly(base, ours) | evenly(real & ~base, wanted - ours)
        return self.keep_chosen(rows, chosen, keep, score)
