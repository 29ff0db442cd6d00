"""Kept indices that an earlier run has selected, checked against the samples that they are given for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.method.known_indices import KnownIndices
from trio_ray.method.rows import PackedRows
from trio_ray.model.prepare import PreparedSample


class KnownIndicesError(TrioRayError):
    """Kept indices do not belong to the sample that they are given for."""


def known_indices(
    samples: Sequence[PreparedSample], kept: Sequence[Sequence[Sequence[int]]], prune_points: int
) -> KnownIndices:
    """The selector that keeps these tokens of these samples.

    Args:
        samples: the batch.
        kept: for each sample the column `kept` of its row: per prune point, indices into its original image tokens.
        prune_points: how many prune points the method has.

    Raises:
        KnownIndicesError: the indices do not fit the sample: they are of another number of prune points, do not ascend,
            lie beyond its image tokens, or come back after they were dropped.
    """
    known = [tuple(torch.as_tensor(indices, dtype=torch.int64, device="cpu") for indices in points) for points in kept]
    for sample, points in zip(samples, known, strict=True):
        fault = _fault(points, prune_points, sample.image_tokens)
        if fault is not None:
            raise KnownIndicesError(
                f"the kept indices of {sample.key!r} {fault}; they belong to another image, or to another method"
            )
    return KnownIndices(kept=tuple(known))


def check_reduction(samples: Sequence[PreparedSample], kept: Sequence[Sequence[Tensor]], rows: PackedRows) -> None:
    """Compare what the encoder's reduction has left, in `rows`, with the first prune point of `kept`.

    The later prune points are looked up among those tokens, so all of them must be there. Waits for the device.

    Raises:
        KnownIndicesError: they differ; names the first sample that does.
    """
    left = rows.image_index[rows.image_rows].cpu().split(list(rows.image_counts))
    for sample, points, own in zip(samples, kept, left, strict=True):
        if not torch.equal(own, points[0]):
            raise KnownIndicesError(
                f"the kept indices of {sample.key!r} are not those that the encoder's reduction leaves now; "
                "use the model, dtype and kind of device that made the cache, or precompute the sample again"
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
