"""Greedy non-maximum suppression, exact, without a loop over tokens, for all samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS_PER_CHECK = 8
"""Fixpoint rounds between two looks at whether anything still changes: each look waits for the device once."""

SIMILARITY_ELEMENTS = 1 << 28
"""Most elements of the similarity matrices held at once (1 GiB in fp32)."""


def suppress(score: Tensor, features: Tensor, real: Tensor, keep: Sequence[int], threshold: float) -> Tensor:
    """Choose `keep[s]` tokens of each sample: by descending score, skipping what resembles a token already chosen.

    A candidate is dropped when its cosine similarity, in fp32, with an already kept one is at least `threshold`. If
    fewer than `keep` survive, the best-scored of the dropped ones fill up (arXiv 2602.04657, released code).

    Args:
        score: (B, N) fp32.
        features: (B, N, d) what similarity is measured on, any float dtype.
        real: (B, N) bool, False for padding.
        keep: number to keep of each sample, at most its number of real tokens.
        threshold: above 1 nothing is suppressed.

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
    real = real.gather(1, order)
    # The greedy result over the best W candidates is that over all, as long as W hold enough survivors.
    window = tokens if threshold > 1 else min(tokens, max(2 * most, 64))
    step = max(1, SIMILARITY_ELEMENTS // (window * window))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        best = _choose(features[part], order[part], real[part], keep[part], threshold, window)
        chosen[part] = chosen[part].scatter(1, order[part], best)
    return chosen


def _choose(
    features: Tensor, order: Tensor, real: Tensor, keep: Sequence[int], threshold: float, window: int
) -> Tensor:
    """(b, N) bool in rank order: the first survivors, then the first of the suppressed."""
    tokens = order.shape[1]
    wanted = torch.tensor(keep, device=order.device)[:, None]
    alive = real if threshold > 1 else _survivors(features, order, real, wanted, threshold, window)
    rank = torch.arange(tokens, device=order.device)
    priority = rank + tokens * (~alive) + 2 * tokens * (~real)
    place = priority.argsort(-1).argsort(-1)
    return place < wanted


def _survivors(features: Tensor, order: Tensor, real: Tensor, wanted: Tensor, threshold: float, window: int) -> Tensor:
    """(b, N) bool, the greedy result over the candidates in rank order, as far as it is needed to fill `wanted`.

    Token j survives if no surviving token i < j suppresses it. Iterating that statement from all-true settles the
    tokens in order of rank, so its fixpoint is the greedy result; it is reached when a round changes nothing.
    """
    tokens = order.shape[1]
    candidates = real[:, :window]
    suppresses = _suppression(features, order[:, :window], threshold)
    alive = candidates
    while True:
        for _ in range(ROUNDS_PER_CHECK):
            before = alive
            alive = candidates & ~(suppresses & before[..., None]).any(1)
        enough = (alive.sum(1, keepdim=True) >= wanted).all()
        settled, filled = torch.stack([(alive == before).all(), enough]).tolist()  # the one wait for the device
        if settled and (filled or window == tokens):
            return F.pad(alive, (0, tokens - window))
        if settled:
            window = min(tokens, 2 * window)
            candidates = real[:, :window]
            suppresses = _suppression(features, order[:, :window], threshold)
            alive = candidates


def _suppression(features: Tensor, order: Tensor, threshold: float) -> Tensor:
    """(b, W, W) bool: whether the candidate of rank i resembles the one of rank j, behind it, too much."""
    index = order[..., None].expand(-1, -1, features.shape[-1])
    unit = F.normalize(features.gather(1, index).float(), dim=-1)
    return (unit @ unit.transpose(1, 2) >= threshold).triu(1)
