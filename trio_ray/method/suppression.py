"""Greedy non-maximum suppression, exact, without a loop over tokens, for all samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.fusion import fused, on_device

ROUNDS_PER_CHECK = 8
"""Fixpoint rounds between two looks at whether anything still changes: each look waits for the device once."""

SIMILARITY_ELEMENTS = 1 << 28
"""Most elements of the similarity matrices held at once (1 GiB in fp32)."""

WINDOW = 2
"""Candidates looked at for each token kept, at first."""


@dataclass
class Haste:
    """Leave to go on without waiting for the device, which alone knows whether suppression has settled.

    Attributes:
        window: candidates looked at for each token kept.
        rounds: of the fixpoint.
        unchecked: what must be looked at later, () bool each, on the device: where one is False, the choice may not be
            the greedy one, and must be made again without haste.
    """

    window: int = WINDOW
    rounds: int = 2 * ROUNDS_PER_CHECK
    unchecked: list[Tensor] = field(default_factory=list)


def suppress(
    score: Tensor,
    hidden: Tensor,
    slots: Tensor,
    real: Tensor,
    keep: Sequence[int],
    threshold: float,
    haste: Haste | None = None,
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
        haste: without it the device is waited for until the result is certain.

    Returns:
        (B, N) bool.
    """
    batch, tokens = score.shape
    chosen = torch.zeros_like(real)
    most = max(keep, default=0)
    if most == 0:
        return chosen
    ranked = torch.nan_to_num(score, nan=0.0).masked_fill(~real, float("-inf"))
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    real, ranked_slots = real.gather(1, order), slots.gather(1, order)
    # The greedy result over the best W candidates is that over all, as long as W hold enough survivors.
    window = tokens if threshold > 1 else min(tokens, max((haste.window if haste else WINDOW) * most, 64))
    step = max(1, SIMILARITY_ELEMENTS // (window * window))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        best = _choose(hidden, ranked_slots[part], real[part], keep[part], threshold, window, haste)
        chosen[part] = chosen[part].scatter(1, order[part], best)
    return chosen


def _choose(
    hidden: Tensor,
    slots: Tensor,
    real: Tensor,
    keep: Sequence[int],
    threshold: float,
    window: int,
    haste: Haste | None,
) -> Tensor:
    """(b, N) bool in rank order: the first survivors, then the first of the suppressed."""
    wanted = on_device(tuple(keep), slots.device)[:, None]
    if threshold > 1:
        alive = real
    elif haste is None:
        alive = _survivors(hidden, slots, real, wanted, threshold, window)
    else:
        alive = _likely_survivors(hidden, slots, real, wanted, threshold, window, haste)
    return _first(alive, real, wanted)


@fused(alive=(0, 1), real=(0, 1), wanted=(0,))
def _first(alive: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
    """(b, N) bool: the first `wanted` of those alive, and where these do not suffice, the first of the others."""
    survivors = alive.cumsum(1)
    fillers = real & ~alive
    missing = wanted - survivors[:, -1:]
    return (alive & (survivors <= wanted)) | (fillers & (fillers.cumsum(1) <= missing))


def _survivors(hidden: Tensor, slots: Tensor, real: Tensor, wanted: Tensor, threshold: float, window: int) -> Tensor:
    """(b, N) bool, the greedy result over the candidates in rank order, as far as it is needed to fill `wanted`.

    Token j survives if no surviving token i < j suppresses it. Iterating that statement from all-true settles the
    tokens in order of rank, so its fixpoint is the greedy result; it is reached when a round changes nothing.
    """
    tokens = slots.shape[1]
    candidates = real[:, :window]
    suppresses = _suppression(hidden[slots[:, :window]], threshold)
    alive = candidates
    while True:
        for _ in range(ROUNDS_PER_CHECK):
            before = alive
            alive = _round(candidates, suppresses, alive)
        enough = (alive.sum(1, keepdim=True) >= wanted).all()
        settled, filled = torch.stack([(alive == before).all(), enough]).tolist()  # the one wait for the device
        if settled and (filled or window == tokens):
            return F.pad(alive, (0, tokens - window))
        if settled:
            window = min(tokens, 2 * window)
            candidates = real[:, :window]
            suppresses = _suppression(hidden[slots[:, :window]], threshold)
            alive = candidates


def _likely_survivors(
    hidden: Tensor, slots: Tensor, real: Tensor, wanted: Tensor, threshold: float, window: int, haste: Haste
) -> Tensor:
    """As `_survivors`, if `haste` was enough; whether it was is noted there."""
    tokens = slots.shape[1]
    candidates = real[:, :window]
    suppresses = _suppression(hidden[slots[:, :window]], threshold)
    alive = before = candidates
    for _ in range(haste.rounds):
        before, alive = alive, _round(candidates, suppresses, alive)
    enough = (alive.sum(1, keepdim=True) >= wanted).all() | (window == tokens)
    haste.unchecked.append((alive == before).all() & enough)
    return F.pad(alive, (0, tokens - window))


@fused(candidates=(0, 1), suppresses=(0, 1, 2), alive=(0, 1))
def _round(candidates: Tensor, suppresses: Tensor, alive: Tensor) -> Tensor:
    return candidates & ~(suppresses & alive[..., None]).any(1)


def _suppression(candidates: Tensor, threshold: float) -> Tensor:
    """(b, W, W) bool, from (b, W, d) in rank order: whether that of rank i resembles that of rank j, behind it, too
    much.
    """
    if candidates.is_cuda and candidates.dtype in (torch.bfloat16, torch.float16):
        # Products of two halves are exact in fp32, in which tensor cores sum them up: as good as fp32, and far faster.
        products = torch.bmm(candidates, candidates.transpose(1, 2), out_dtype=torch.float32)
        return _alike(products, threshold)
    unit = F.normalize(candidates.float(), dim=-1)
    return (unit @ unit.transpose(1, 2) >= threshold).triu(1)


@fused(products=(0, 1, 2))
def _alike(products: Tensor, threshold: float) -> Tensor:
    """(b, W, W) bool, from the candidates' scalar products in fp32."""
    length = products.diagonal(dim1=1, dim2=2).clamp_min(1e-24).sqrt()
    return (products >= threshold * length[:, :, None] * length[:, None]).triu(1)
