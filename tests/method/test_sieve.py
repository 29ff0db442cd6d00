"""SIEVE equals its description, written out one prompt and one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.method.layers import FAMILIES, proxy_of, random_model
from tests.method.prompts import kept_numbers, states
from tests.method.reference import eager_attention
from tests.method.test_saliency import prompt
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.sieve import Sieve

PROMPTS = [prompt(3, 40, 9), prompt(0, 17, 6), prompt(5, 25, 3), prompt(2, 30, 1), prompt(0, 8, 12)]
KEEP = [11, 6, 25, 3, 8]


def residual_of(hidden: Tensor, mask: Tensor, spectrum: float) -> tuple[Tensor, Tensor]:
    """Image rows less what ridge regression on the text rows explains, and their share that is left; in float64."""
    hidden = hidden.double()
    mean = hidden[~mask].mean(0)
    text, image = hidden[~mask] - mean, hidden[mask] - mean
    gram = text @ text.T
    values = sorted(torch.linalg.eigvalsh(gram).tolist(), reverse=True)
    total, ridge = 0.0, 0.0
    for ridge in values:
        total += ridge
        if total >= spectrum * sum(values):
            break
    residual = []
    for row in image:
        weights = torch.linalg.inv(gram + ridge * torch.eye(len(gram))) @ (text @ row)
        residual.append(row - weights @ text)
    return torch.stack(residual), torch.stack(residual).norm(dim=1) / image.norm(dim=1)


def attention_mass(probs: Tensor, mask: Tensor, heads: int) -> Tensor:
    """What all text rows give each image token in the `heads` heads that give the image most."""
    by_head = probs.double()[:, ~mask][:, :, mask].sum(1)
    best = sorted(range(len(by_head)), key=lambda head: -float(by_head[head].sum()))[:heads]
    return by_head[best].sum(0)


def greedy(score: Tensor, residual: Tensor, keep: int) -> list[int]:
    """Take the best; what resembles it loses; again."""
    score, kept = score.clone(), []
    for _ in range(keep):
        best = max((token for token in range(len(score)) if token not in kept), key=lambda token: float(score[token]))
        kept.append(best)
        for token in range(len(score)):
            cosine = torch.cosine_similarity(residual[token], residual[best], dim=0)
            score[token] = score[token] * (1 - cosine**2)
    return sorted(kept)


@pytest.mark.parametrize(("spectrum", "heads", "of_four"), [(0.75, 12 / 32, 2), (0.4, 1.0, 4), (0.95, 0.1, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_loop(family: str, spectrum: float, heads: float, of_four: int) -> None:
    model = random_model(family)
    hidden, rows = states(PROMPTS), PackedRows.pack(PROMPTS, "cpu")
    packed = torch.cat(hidden)
    proxy = proxy_of(model, packed, rows)
    selection = Sieve(spectrum=spectrum, heads=heads).select(packed, rows, proxy, KEEP)
    model.set_attn_implementation("eager")
    expected = []
    for sample, (mask, one) in enumerate(zip(PROMPTS, hidden, strict=True)):
        residual, share = residual_of(one, mask, spectrum)
        score = attention_mass(eager_attention(model, 1, one), mask, of_four) ** 2 * share**2
        ours = selection.score[rows.offsets[sample] : rows.offsets[sample + 1]][mask]
        torch.testing.assert_close(ours.double(), score, rtol=2e-3, atol=1e-6)
        expected.append(greedy(score, residual, KEEP[sample]))
    assert kept_numbers(rows, selection) == expected


def test_the_authors_settings_are_the_default() -> None:
    assert (Sieve().spectrum, Sieve().heads) == (0.75, 12 / 32)


def test_one_text_row_explains_nothing() -> None:
    """It is its own mean, so the regression has nothing to go by: the whole of each image row is left."""
    mask = prompt(0, 12, 1)
    rows, (hidden,) = PackedRows.pack([mask], "cpu"), states([mask])
    model = random_model("llama")
    score = Sieve(heads=1.0).score(hidden, rows, proxy_of(model, hidden, rows))
    model.set_attn_implementation("eager")
    torch.testing.assert_close(score[mask], eager_attention(model, 1, hidden)[:, -1, :-1].sum(0).square())
