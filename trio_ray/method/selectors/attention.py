"""FastV's criterion: what the prompt's last row looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from trio_ray.method.proxy import ProxyLayer, rms_norm
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.selector import SuppressingSelector
from trio_ray.method.supervision import TargetRows, attend_from


@dataclass(frozen=True)
class AttentionScore(SuppressingSelector):
    """Keeps what the last row attends to most, mean over heads, in the layer behind the prune point (FastV, arXiv
    2403.06764).
    """

    name: ClassVar[str] = "attention"
    compared: ClassVar[dict[str, dict[str, Any]]] = {"attention + NMS": {"settings": {"threshold": 0.8}}}

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """See `Selector`."""
        target = TargetRows.of(rows, (-1,))
        normed = rms_norm(hidden, proxy.norm_weight, proxy.norm_eps)
        probs = attend_from(normed, rows, proxy, target).probs.mean((1, 2))
        return probs[rows.padded[1]]
