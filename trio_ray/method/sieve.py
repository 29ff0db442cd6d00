"""SIEVE: what the text cannot explain, weighted by what the text looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trio_ray.method.proxy import ProxyLayer, rms_norm
from trio_ray.method.rows import PackedRows, select_rows
from trio_ray.method.selector import NO_SUPPRESSION, Selection, Selector
from trio_ray.method.supervision import TargetRows, attend_from

AUTHORS_SPECTRUM = 0.75
AUTHORS_HEADS = 12 / 32


@dataclass(frozen=True)
class Sieve(Selector):
    """Cross-modal residual times attention, chosen greedily with decay (arXiv 2608.10489).

    For comparison with TRIO: samples and greedy steps are looped over, it is not built for speed.

    Attributes:
        spectrum: share of the text Gram matrix's spectrum at whose eigenvalue the ridge is set.
        heads: share of the heads, those that look most at the image, whose attention counts.
    """

    threshold: float = NO_SUPPRESSION
    spectrum: float = AUTHORS_SPECTRUM
    heads: float = AUTHORS_HEADS

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """Squared attention mass times squared residual share; see `Selector`."""
        score = torch.zeros(rows.total, device=rows.device)
        attention = self._attention(hidden, rows, proxy)
        for start, stop in pairwise(rows.offsets):
            image = rows.is_image[start:stop]
            residual, centred = self._residual(hidden[start:stop].float(), image)
            share = residual.norm(dim=-1) / centred.norm(dim=-1).clamp_min(1e-12)
            score[start:stop][image] = (attention[start:stop][image] * share).square()
        return score

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """Take the best, multiply the others by 1 - cos^2 of the residuals, again and again; see `Selector`."""
        score = self.score(hidden, rows, proxy)
        stays = ~rows.is_image
        for number, (start, stop) in enumerate(pairwise(rows.offsets)):
            image = rows.is_image[start:stop]
            residual, _ = self._residual(hidden[start:stop].float(), image)
            chosen = _decay(score[start:stop][image], residual, keep[number])
            stays[start:stop][image] = chosen
        count = rows.total - sum(rows.image_counts) + sum(keep)
        return Selection(select_rows(stays, count), score)

    def _attention(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """(T,) attention mass from the text rows behind the image, over the heads that look most at the image."""
        normed = rms_norm(hidden, proxy.norm_weight, proxy.norm_eps)
        longest = max(1, *rows.tails)
        probs = attend_from(normed, rows, proxy, TargetRows.of(rows, range(-longest, 0))).probs
        behind = (
            torch.arange(longest, 0, -1, device=rows.device) <= torch.tensor(rows.tails, device=rows.device)[:, None]
        )
        probs = probs.unflatten(2, (-1, longest)) * behind[:, None, None, :, None]
        probs = probs.sum(3).flatten(1, 2)  # (B, heads, S)
        slots, real = rows.padded
        on_image = (probs * (rows.is_image[slots] & real)[:, None]).sum(-1)
        best = on_image.topk(max(1, round(self.heads * proxy.heads)), dim=-1).indices
        mass = probs.gather(1, best[..., None].expand(-1, -1, probs.shape[-1])).sum(1)
        return mass[real]

    def _residual(self, hidden: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image rows, centred by the text mean, less their ridge regression on the text rows; both (N, d)."""
        mean = hidden[~image].mean(0)
        text, centred = hidden[~image] - mean, hidden[image] - mean
        gram = text @ text.T
        values = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
        at = int((values.cumsum(0) < self.spectrum * values.sum()).sum())
        ridge = values[min(at, len(values) - 1)] * torch.eye(len(gram), device=gram.device)
        weights = torch.linalg.solve(gram + ridge, text @ centred.T)
        return centred - weights.T @ text, centred


def _decay(score: Tensor, residual: Tensor, keep: int) -> Tensor:
    """(N,) bool: `keep` rows, each the best after the decay by those before it."""
    unit = torch.nn.functional.normalize(residual, dim=-1)
    chosen = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    left = score.clone()
    for _ in range(keep):
        best = left.masked_fill(chosen, -1.0).argmax()
        chosen[best] = True
        left = left * (1 - (unit @ unit[best]).square())
    return chosen
