"""SIEVE: what the text cannot explain, weighted by what the text looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from trio_ray.method.proxy import ProxyLayer, rms_norm
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.selector import Selection, Selector
from trio_ray.method.supervision import TargetRows, attend_from
from trio_ray.tensors import on_device

AUTHORS_SPECTRUM = 0.75
AUTHORS_HEADS = 12 / 32


@dataclass(frozen=True)
class Sieve(Selector):
    """Cross-modal residual times attention, chosen greedily with decay (arXiv 2608.10489).

    For comparison with TRIO: one greedy step after the other, it is not built for speed.

    Attributes:
        spectrum: share of the text Gram matrix's spectrum at whose eigenvalue the ridge is set.
        heads: share of the heads, those that look most at the image, whose attention counts.
    """

    name: ClassVar[str] = "sieve"
    spectrum: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="Share of the text Gram matrix's spectrum whose eigenvalue sets the ridge."),
    ] = AUTHORS_SPECTRUM
    heads: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="Share of the heads, those that look most at the image, that count."),
    ] = AUTHORS_HEADS

    def score(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """Squared attention mass times squared residual share; see `Selector`."""
        slots, real = rows.padded_images
        residual, centred = self._residual(hidden, rows)
        share = residual.norm(dim=-1) / centred.norm(dim=-1).clamp_min(1e-12)
        score = torch.zeros(rows.total, device=rows.device)
        attention = self._attention(hidden, rows, proxy)
        return score.index_copy(0, slots[real], (attention[slots] * share).square()[real])

    def select(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer, keep: Sequence[int]) -> Selection:
        """Take the best, multiply the others by 1 - cos^2 of the residuals, again and again; see `Selector`."""
        score = self.score(hidden, rows, proxy)
        slots, real = rows.padded_images
        chosen = _decay(score[slots].masked_fill(~real, -1.0), self._residual(hidden, rows)[0], keep)
        return self.keep_chosen(rows, chosen & real, keep, score)

    def _attention(self, hidden: Tensor, rows: PackedRows, proxy: ProxyLayer) -> Tensor:
        """(T,) attention mass from the text rows behind the image, over the heads that look most at the image."""
        normed = rms_norm(hidden, proxy.norm_weight, proxy.norm_eps)
        longest = max(1, *rows.tails)
        probs = attend_from(normed, rows, proxy, TargetRows.of(rows, range(-longest, 0))).probs
        behind = torch.arange(longest, 0, -1, device=rows.device) <= on_device(rows.tails, rows.device)[:, None]
        probs = probs.unflatten(2, (-1, longest)) * behind[:, None, None, :, None]
        probs = probs.sum(3).flatten(1, 2)  # (B, heads, S)
        slots, real = rows.padded
        on_image = (probs * (rows.is_image[slots] & real)[:, None]).sum(-1)
        best = on_image.topk(max(1, round(self.heads * proxy.heads)), dim=-1).indices
        mass = probs.gather(1, best[..., None].expand(-1, -1, probs.shape[-1])).sum(1)
        return mass[real]

    def _residual(self, hidden: Tensor, rows: PackedRows) -> tuple[Tensor, Tensor]:
        """(B, N, d) image rows less the text mean, without and with what ridge regression on the text rows explains."""
        (text_slots, is_text), (image_slots, _) = rows.padded_texts, rows.padded_images
        text = hidden[text_slots].float()
        mean = (text * is_text[..., None]).sum(1, keepdim=True) / is_text.sum(1)[:, None, None]
        text, centred = (text - mean) * is_text[..., None], hidden[image_slots].float() - mean
        gram = text @ text.transpose(1, 2)
        values = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)
        at = (values.cumsum(-1) < self.spectrum * values.sum(-1, keepdim=True)).sum(-1, keepdim=True)
        # One text row alone is its own mean and explains nothing: a ridge of 0 would make that unsolvable.
        ridge = values.gather(1, at.clamp_max(values.shape[1] - 1)).clamp_min(1e-12)[..., None]
        ridge = ridge * torch.eye(gram.shape[-1], device=gram.device)
        weights = torch.linalg.solve(gram + ridge, text @ centred.transpose(1, 2))
        return centred - weights.transpose(1, 2) @ text, centred


def _decay(score: Tensor, residual: Tensor, keep: Sequence[int]) -> Tensor:
    """(B, N) bool: `keep[s]` tokens of each sample, each the best after the decay by those before it."""
    unit = F.normalize(residual, dim=-1)
    wanted = on_device(tuple(keep), score.device)
    sample = torch.arange(len(score), device=score.device)
    chosen = torch.zeros_like(score, dtype=torch.bool)
    for step in range(max(keep)):
        best = score.masked_fill(chosen, -2.0).argmax(-1)
        chosen[sample, best] |= step < wanted
        likeness = (unit @ unit[sample, best][..., None]).squeeze(-1)
        # Padding has a negative score and keeps it.
        score = score * (1 - likeness.square()).clamp_min(0)
    return chosen
