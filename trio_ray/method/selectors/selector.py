"""What every token selector is, and what it declares about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, ClassVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows, Positions, select_rows
from trio_ray.method.schedule import AUTHORS_SHAPE, ScheduleShape
from trio_ray.method.suppression import NO_SUPPRESSION, Speculation, suppress

Threshold = Annotated[
    float,
    Field(
        gt=-1.0,
        description="A token whose cosine similarity with a better, kept token is at least this is suppressed; a "
        "threshold above 1 switches suppression off.",
    ),
]


@dataclass(frozen=True)
class Selection:
    """What a prune point decides: `rows` (T',) int64 rows that stay, ascending; `score` (T,) fp32 of all rows before
    it.
    """

    rows: Tensor
    score: Tensor


@dataclass(frozen=True)
class Selector(ABC):
    """Decides which image rows stay at a prune point. A subclass implements `score`; the best scores are kept.

    A subclass is a frozen dataclass. Its fields are its settings (`method.settings` of a job): each has a type, a
    default and a description (`Annotated[float, Field(description=...)]`). They are validated, documented and stored
    in the cache's identity from this declaration alone.

    Attributes:
        name: what `method.selector` calls it, for the selectors of this package; others are named `module:Class`.
        shape: the default prune points and weights.
        full_depth_shape: the same where the first layers run on all tokens (`method.full_depth`); None for `shape`.
        full_depth_settings: its settings whose default is another one there.
        positions: the default of `method.positions`.
        searched: values of its settings that a search for a schedule tries (`method.schedule: auto`).
        compared: rows for the lab's tables beside the selector's own, by name: the settings of `method` that differ.
        speculation: permission to be certain only later (`Speculation`); not a setting.
    """

    name: ClassVar[str] = ""
    shape: ClassVar[ScheduleShape] = AUTHORS_SHAPE
    full_depth_shape: ClassVar[ScheduleShape | None] = None
    full_depth_settings: ClassVar[Mapping[str, Any]] = {}
    positions: ClassVar[Positions] = "compact"
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    compared: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    speculation: Speculation | None = field(default=None, kw_only=True, compare=False, repr=False)

    @classmethod
    def shape_at(cls, full_depth: float) -> ScheduleShape:
        """The default prune points and weights where this share of the layers runs on all tokens."""
        return (cls.full_depth_shape if full_depth else None) or cls.shape

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which rows are kept, by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.compare}

    @property
    def proxy_rows(self) -> int:
        """Rows of each prompt that the selector runs the proxy layer on; what it costs depends on them."""
        return 0

    @abstractmethod
    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """Score the rows of a packed batch; a sample's scores must not depend on the other samples.

        Args:
            hidden: (T, d) output of the layers before the prune point.
            rows: layout of the T rows.
            proxy: the layer behind the prune point.

        Returns:
            (T,) fp32; higher is kept. Scores of text rows are ignored.
        """

    def choose(self, score: Tensor, hidden: Tensor, slots: Tensor, real: Tensor, keep: Sequence[int]) -> Tensor:
        """Choose `keep[s]` image rows of each sample, by default those of the highest score.

        Args:
            score: (B, N) fp32 of the image rows, padded.
            hidden: (T, d).
            slots: (B, N) int64, which row of `hidden` each entry is (`PackedRows.padded_images`).
            real: (B, N) bool, False for padding.
            keep: how many.

        Returns:
            (B, N) bool.
        """
        return suppress(score, hidden, slots, real, keep, NO_SUPPRESSION)

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


@dataclass(frozen=True)
class SuppressingSelector(Selector):
    """Keeps the best scores, and skips a row that resembles a better one (greedy non-maximum suppression)."""

    threshold: Threshold = NO_SUPPRESSION

    def choose(self, score: Tensor, hidden: Tensor, slots: Tensor, real: Tensor, keep: Sequence[int]) -> Tensor:
        """See `Selector`."""
        return suppress(score, hidden, slots, real, keep, self.threshold, self.speculation)


@cache
def settings_model(kind: type[Selector]) -> type[BaseModel]:
    """The settings that a selector declares, as a model that validates them; other names are errors."""
    hints = get_type_hints(kind, include_extras=True)
    declared: dict[str, Any] = {
        entry.name: (hints[entry.name], ... if entry.default is MISSING else entry.default)
        for entry in fields(kind)
        if entry.compare
    }
    return create_model(kind.__name__, __config__=ConfigDict(extra="forbid"), **declared)
