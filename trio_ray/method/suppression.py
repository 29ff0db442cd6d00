"""Greedy non-maximum suppression, exact, without a loop over tokens on the host, for all samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.rows import ALIGNMENT
from trio_ray.tensors import fused, has_triton, on_device

NO_SUPPRESSION = 2.0
"""A threshold that no cosine similarity reaches."""

SIMILARITY_ELEMENTS = 1 << 28
"""Upper bound of the similarity matrices' elements held at once (1 GiB in fp32)."""

WINDOW = 2
"""Candidates that are looked at first for each token kept."""

LEAST_WINDOW = 64


@dataclass
class Speculation:
    """Permission to go on before it is known that suppression has converged.

    Suppression looks at a window of the best candidates. Only the device knows whether the window held enough
    survivors, and asking it would make the host wait. With a `Speculation` the host goes on as if the answer were yes.

    Attributes:
        window: candidates that are looked at for each token kept.
        pending: () bool tensors on the device, one for each choice: whether it has converged. Where one of them is
            False, the choice may differ from the greedy one, and must be recomputed without a `Speculation`.
    """

    window: int = WINDOW
    pending: list[Tensor] = field(default_factory=list)


def suppress(
    score: Tensor,
    hidden: Tensor,
    slots: Tensor,
    real: Tensor,
    keep: Sequence[int],
    threshold: float,
    speculation: Speculation | None = None,
) -> Tensor:
    """Choose `keep[s]` tokens of each sample: by descending score, skipping what resembles a token already chosen.

    A candidate is dropped when its cosine similarity, in fp32, with an already kept one is at least `threshold`. If
    fewer than `keep` survive, the best-scored of the dropped ones fill up (arXiv 2602.04657, released code).

    Args:
        score: (B, N) fp32.
        hidden: (T, d) what similarity is measured on, any float dtype.
        slots: (B, N) int64, the tokens' rows in `hidden`; within range for padding, too.
        real: (B, N) bool, False for padding.
        keep: number to keep of each sample, at most its number of real tokens.
        threshold: above 1 nothing is suppressed.
        speculation: without it the host waits for the device until the choice has converged.

    Returns:
        (B, N) bool.
    """
    batch, tokens = score.shape
    chosen = torch.zeros_like(real)
    largest = max(keep, default=0)
    if largest == 0:
        return chosen
    ranked = torch.nan_to_num(score, nan=0.0).masked_fill(~real, float("-inf"))
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    real, ranked_slots = real.gather(1, order), slots.gather(1, order)
    window = max((speculation.window if speculation else WINDOW) * largest, LEAST_WINDOW)
    window = min(tokens, -(-window // ALIGNMENT) * ALIGNMENT)
    step = max(1, SIMILARITY_ELEMENTS // (window * window))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        wanted = on_device(tuple(keep[part]), score.device)[:, None]
        alive = real[part]
        if threshold <= 1:
            alive = _survivors(hidden, ranked_slots[part], alive, wanted, threshold, window, speculation)
        best = _first(alive, real[part], wanted)
        chosen[part] = chosen[part].scatter(1, order[part], best)
    return chosen


@fused(alive=(0, 1), real=(0, 1), wanted=(0,))
def _first(alive: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
    """(b, N) bool: the first `wanted` of those alive, and where these do not suffice, the first of the others."""
    survivors = alive.cumsum(1)
    fillers = real & ~alive
    missing = wanted - survivors[:, -1:]
    return (alive & (survivors <= wanted)) | (fillers & (fillers.cumsum(1) <= missing))


def _survivors(
    hidden: Tensor,
    slots: Tensor,
    real: Tensor,
    wanted: Tensor,
    threshold: float,
    window: int,
    speculation: Speculation | None,
) -> Tensor:
    """(b, N) bool, the greedy result over the candidates in rank order, as far as it is needed to fill `wanted`.

    The result over the best W candidates is that over all, as long as W hold enough survivors.
    """
    tokens = slots.shape[1]
    while True:
        candidates = hidden[slots[:, :window].contiguous()]
        alive = F.pad(_greedy(candidates, real[:, :window], wanted, threshold), (0, tokens - window))
        if window == tokens:
            return alive
        # A sample without real tokens behind the window has no more survivors anywhere.
        enough = ((alive.sum(1, keepdim=True) >= wanted) | ~real[:, window : window + 1]).all()
        if speculation is not None:
            speculation.pending.append(enough)
            return alive
        if enough:
            return alive
        window = min(tokens, 2 * window)


def _greedy(candidates: Tensor, real: Tensor, wanted: Tensor, threshold: float) -> Tensor:
    """(b, W) bool, the survivors among (b, W, d) candidates in rank order; those behind the first `wanted` of a sample
    need not be told from the others.
    """
    if has_triton(candidates.device):
        from trio_ray.method.kernels.suppression import first_survivors

        return first_survivors(*_products(candidates), real, wanted, threshold)
    products, length = _products(candidates)
    suppresses = (products >= threshold * length[:, :, None] * length[:, None]).triu(1)
    # Token j survives if no surviving token i < j suppresses it. Iterating that rule from all-true decides the tokens
    # in order of rank, so its fixpoint is the greedy result; it is reached when a round changes nothing.
    before, alive = None, real
    while before is None or not torch.equal(before, alive):
        before, alive = alive, real & ~(suppresses & alive[..., None]).any(1)
    return alive


def _products(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Scalar products (b, W, W) and lengths (b, W), both fp32, of (b, W, d) candidates."""
    if candidates.is_cuda and candidates.dtype in (torch.bfloat16, torch.float16):
        # Products of two halves are exact in fp32, in which tensor cores sum them up: as good as fp32, and far faster.
        products = torch.bmm(candidates, candidates.transpose(1, 2), out_dtype=torch.float32)
        return products, products.diagonal(dim1=1, dim2=2).clamp_min(1e-24).sqrt()
    unit = F.normalize(candidates.float(), dim=-1)
    return unit @ unit.transpose(1, 2), unit.new_ones(unit.shape[:2])
