"""Prefilling again what an earlier run has selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.method.known_indices import KnownIndices
from trio_ray.method.rows import PackedRows
from trio_ray.method.selector import Positions
from trio_ray.method.visionzip import VisionZip
from trio_ray.model.prepare import PreparedSample

Scope = Literal["prompt", "image"]


class KnownIndicesError(TrioRayError):
    """Kept indices that cannot be those of the sample that they are given for."""


@dataclass(frozen=True)
class KnownMethod:
    """How the prefixes of a cache came about, but for the selection itself, which their kept indices tell.

    Attributes:
        prune_points: layers before which tokens were dropped.
        positions: what became of the kept rows' positions.
        scope: how far the prefixes go.
        instruction: with scope image, what stood in for each sample's own text.
        zipper: the reduction behind the vision tower, if any.
        top_k: entries of the first token's distribution.
    """

    prune_points: tuple[int, ...]
    positions: Positions
    scope: Scope = "prompt"
    instruction: str | None = None
    zipper: VisionZip | None = None
    top_k: int = 1

    def selector(self, samples: Sequence[PreparedSample], kept: Sequence[Sequence[Sequence[int]]]) -> KnownIndices:
        """The selector that keeps these tokens of these samples.

        Args:
            samples: the batch.
            kept: of each sample the column `kept`: per prune point, indices into its original image tokens.

        Raises:
            KnownIndicesError: they do not fit the sample: another number of prune points, indices that do not ascend,
                lie beyond its image tokens, or come back after they were dropped.
        """
        known = [
            tuple(torch.as_tensor(indices, dtype=torch.int64, device="cpu") for indices in points) for points in kept
        ]
        for sample, points in zip(samples, known, strict=True):
            fault = _fault(points, len(self.prune_points), sample.image_tokens)
            if fault is not None:
                raise KnownIndicesError(f"kept indices of {sample.key!r} {fault}; its image is not the one they are of")
        return KnownIndices(positions=self.positions, kept=tuple(known))


def check_reduction(samples: Sequence[PreparedSample], kept: Sequence[Sequence[Tensor]], rows: PackedRows) -> None:
    """Compare what an encoder's reduction has left, in `rows`, with the first prune point of `kept`.

    The later points are looked up among those tokens, so any other would be missing there. Waits for the device.

    Raises:
        KnownIndicesError: they differ; names the first sample that does.
    """
    left = rows.image_index[rows.image_rows].cpu().split(list(rows.image_counts))
    for sample, points, own in zip(samples, kept, left, strict=True):
        if not torch.equal(own, points[0]):
            raise KnownIndicesError(
                f"kept indices of {sample.key!r} are not those that the encoder's reduction leaves of it now; prefill "
                "it with the model, dtype and kind of device that the cache was made with, or precompute it again"
            )


def _fault(points: Sequence[Tensor], wanted: int, tokens: int) -> str | None:
    if len(points) != wanted:
        return f"are of {len(points)} prune points, not {wanted}"
    for indices in points:
        if bool((indices.diff() <= 0).any() or (indices < 0).any() or (indices >= tokens).any()):
            return f"do not ascend within its {tokens} image tokens"
    if any(not bool(torch.isin(later, earlier).all()) for earlier, later in pairwise(points)):
        return "bring back dropped tokens"
    return None
