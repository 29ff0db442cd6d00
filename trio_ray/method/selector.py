"""What every token selector is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows, select_rows
from trio_ray.method.suppression import Haste, suppress

Positions = Literal["compact", "original"]

NO_SUPPRESSION = 2.0
"""A threshold that no cosine similarity reaches."""


@dataclass(frozen=True)
class Selection:
    """What a prune point decides: `rows` (T',) int64 rows that stay, ascending; `score` (T,) fp32 of all rows before
    it.
    """

    rows: Tensor
    score: Tensor


@dataclass(frozen=True)
class Selector(ABC):
    """Keeps the image rows of highest score, optionally skipping those that resemble a better one.

    Attributes:
        threshold: cosine similarity of hidden states from which a row is suppressed by a better one.
        positions: what becomes of the rows that stay: "compact" closes up their positions, as the authors do;
            "original" leaves each where it was in the unpruned prompt.
        haste: leave to be certain only later (`Haste`); no part of what a selector is.
    """

    threshold: float = NO_SUPPRESSION
    positions: Positions = "compact"
    haste: Haste | None = field(default=None, kw_only=True, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what is kept, by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.compare}

    @abstractmethod
    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """Score the rows of a packed batch; a sample's scores must not depend on the other samples.

        Args:
            hidden: (T, d) output of the layers before the prune point.
            rows: layout of the T rows.
            proxy: the layer behind the prune point.

        Returns:
            (T,) fp32; higher is kept. Text rows' scores are ignored.
        """

    def choose(self, score: Tensor, hidden: Tensor, slots: Tensor, real: Tensor, keep: Sequence[int]) -> Tensor:
        """(B, N) bool, `keep[s]` image rows of each sample.

        Args:
            score: (B, N) fp32 of the image rows, padded.
            hidden: (T, d).
            slots, real: (B, N), which row of `hidden` each is, and whether it is one (`PackedRows.padded_images`).
            keep: how many.
        """
        return suppress(score, hidden, slots, real, keep, self.threshold, self.haste)

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """Choose `keep[s]` image rows of each sample (at most what it has); text rows always stay."""
        score = self.score(hidden, rows, proxy)
        slots, real = rows.padded_images
        chosen = self.choose(score[slots], hidden, slots, real, keep)
        return self.keep_chosen(rows, chosen & real, keep, score)

    @staticmethod
    def keep_chosen(rows: PackedRows, chosen: Tensor, keep: Sequence[int], score: Tensor) -> Selection:
        """The selection that keeps all text rows and the `chosen` ((B, N) bool, of `rows.padded_images`) image rows."""
        # Padding repeats a real row, so its False must not overwrite that row's True: ones are only ever added.
        slots = rows.padded_images[0]
        stays = (~rows.is_image).long().scatter_add(0, slots.flatten(), chosen.flatten().long()) > 0
        count = rows.total - sum(rows.image_counts) + sum(keep)
        return Selection(select_rows(stays, count), score)
