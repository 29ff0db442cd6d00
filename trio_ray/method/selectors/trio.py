"""TRIO: proxy saliency, then non-maximum suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer
from trio_ray.method.rows import PackedRows
from trio_ray.method.saliency import proxy_saliency
from trio_ray.method.selectors.selector import SuppressingSelector, Threshold
from trio_ray.method.suppression import NO_SUPPRESSION

AUTHORS_ROWS = (-5, -4, -3, -2)
AUTHORS_THRESHOLD = 0.8


def _counted_from_the_end(rows: tuple[int, ...]) -> tuple[int, ...]:
    if any(row >= 0 for row in rows) or len(set(rows)) != len(rows):
        raise ValueError("must be distinct negative row numbers, such as -5, -4, -3, -2")
    return tuple(sorted(rows))


SupervisedRows = Annotated[
    tuple[int, ...],
    AfterValidator(_counted_from_the_end),
    Field(
        min_length=1,
        description="Rows whose own prediction is the proxy's label, counted from the prompt's end (-1 is the last).",
    ),
]


@dataclass(frozen=True)
class Trio(SuppressingSelector):
    """Keeps the visual tokens whose removal would change the model's output (arXiv 2602.04657).

    Attributes:
        supervised_rows: rows whose own prediction is the proxy's label, counted from the prompt's end.
    """

    name: ClassVar[str] = "trio"
    searched: ClassVar[dict[str, tuple[Any, ...]]] = {
        "supervised_rows": (AUTHORS_ROWS, (*AUTHORS_ROWS, -1), (-1,)),
        "threshold": (0.7, AUTHORS_THRESHOLD, 0.9, NO_SUPPRESSION),
    }
    compared: ClassVar[dict[str, dict[str, Any]]] = {
        "trio, original positions": {"positions": "original"},
        "trio, no NMS": {"settings": {"threshold": NO_SUPPRESSION}},
    }
    threshold: Threshold = AUTHORS_THRESHOLD
    supervised_rows: SupervisedRows = AUTHORS_ROWS

    @property
    def proxy_rows(self) -> int:
        """See `Selector`."""
        return len(self.supervised_rows)

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """See `Selector`."""
        return proxy_saliency(hidden, rows, proxy, self.supervised_rows)
