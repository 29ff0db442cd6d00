"""The closed-form saliency equals autograd through the whole layer, for every family and every layout of the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.method.layers import FAMILIES, WIDTH, proxy_of, random_model
from tests.method.reference import autograd_saliency
from trio_ray.method.rows import PackedRows
from trio_ray.method.saliency import proxy_saliency

ROWS = (-5, -4, -3, -2)


def prompt(before: int, image: int, after: int) -> Tensor:
    mask = torch.zeros(before + image + after, dtype=torch.bool)
    mask[before : before + image] = True
    return mask


PROMPTS = [prompt(3, 40, 9), prompt(0, 17, 6), prompt(5, 25, 3), prompt(2, 30, 1), prompt(4, 12, 0), prompt(0, 2, 1)]
"""Text after the image from plenty to none: supervised rows are text, both, image alone, and before
the prompt's start.
"""


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """Largest error in units of the truth; values far below the largest count as a thousandth of it."""
    return float(((ours - truth).abs() / truth.clamp_min(1e-3 * truth.max())).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_autograd_in_a_packed_batch_of_different_lengths(family: str) -> None:
    model = random_model(family)
    rows = PackedRows.pack(PROMPTS, "cpu")
    hidden = torch.randn(rows.total, WIDTH)
    ours = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), ROWS)
    assert ours.dtype == torch.float32
    for sample, mask in enumerate(PROMPTS):
        part = slice(*rows.offsets[sample : sample + 2])
        truth = autograd_saliency(model.model, model.lm_head, 1, hidden[part], ROWS)
        assert relative_error(ours[part][mask], truth[mask]) < 1e-5


@pytest.mark.parametrize("supervised", [(-1,), (-2,), (-5, -4, -3, -2, -1), (-30, -8, -2), tuple(range(-9, 0))])
def test_any_supervised_rows_equal_autograd(supervised: tuple[int, ...]) -> None:
    model = random_model("mistral_grouped", seed=1)
    rows = PackedRows.pack(PROMPTS[:4], "cpu")
    hidden = torch.randn(rows.total, WIDTH)
    ours = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), supervised)
    for sample, mask in enumerate(PROMPTS[:4]):
        part = slice(*rows.offsets[sample : sample + 2])
        truth = autograd_saliency(model.model, model.lm_head, 1, hidden[part], supervised)
        assert relative_error(ours[part][mask], truth[mask]) < 1e-5


def test_text_rows_too_equal_autograd_where_a_supervised_row_reaches_the_image() -> None:
    model = random_model("llama")
    rows = PackedRows.pack([PROMPTS[2]], "cpu")
    hidden = torch.randn(rows.total, WIDTH)
    ours = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), ROWS)
    truth = autograd_saliency(model.model, model.lm_head, 1, hidden, ROWS)
    assert relative_error(ours, truth) < 1e-5
    assert float(ours[-1]) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_is_exact_not_approximate(family: str) -> None:
    """In fp64 the weights and sums carry 16 digits; what is left are the norms and softmax that stay in fp32."""
    model = random_model(family, torch.float64)
    rows = PackedRows.pack(PROMPTS, "cpu")
    hidden = torch.randn(rows.total, WIDTH, dtype=torch.float64)
    ours = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), ROWS)
    for sample, mask in enumerate(PROMPTS):
        part = slice(*rows.offsets[sample : sample + 2])
        truth = autograd_saliency(model.model, model.lm_head, 1, hidden[part], ROWS)
        assert relative_error(ours[part][mask].double(), truth[mask]) < 3e-6


def test_rows_shortened_by_an_earlier_prune_equal_autograd_on_renumbered_rows() -> None:
    """Right-aligned positions give the score of rows renumbered from 0."""
    model = random_model("mistral_grouped")
    full = PackedRows.pack(PROMPTS[:2], "cpu")
    kept = torch.cat((torch.tensor([0, 1, 2, 5, 9, 33]), torch.arange(43, 52), torch.arange(55, 75)))
    rows = full.keep(kept, (3, 14))
    hidden = torch.randn(rows.total, WIDTH)
    ours = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), ROWS)
    for sample in range(2):
        part = slice(*rows.offsets[sample : sample + 2])
        image = rows.is_image[part]
        truth = autograd_saliency(model.model, model.lm_head, 1, hidden[part], ROWS)
        assert relative_error(ours[part][image], truth[image]) < 1e-5


def test_one_sample_does_not_influence_another() -> None:
    """Not even when its states are absurdly large or no numbers at all."""
    model = random_model("llama")
    rows = PackedRows.pack(PROMPTS[:3], "cpu")
    hidden = torch.randn(rows.total, WIDTH)
    calm = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), ROWS)
    others = (rows.sample != 1)[:, None]
    for disturbance in (1e6 * torch.randn_like(hidden), torch.full_like(hidden, float("nan"))):
        wild = torch.where(others, disturbance, hidden)
        disturbed = proxy_saliency(wild, rows, proxy_of(model, wild, rows), ROWS)
        assert torch.equal(disturbed[rows.sample == 1], calm[rows.sample == 1])


def test_rows_behind_the_last_supervised_one_have_no_saliency() -> None:
    model = random_model("llama")
    rows = PackedRows.pack([prompt(3, 20, 0)], "cpu")
    hidden = torch.randn(rows.total, WIDTH)
    ours = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), (-9, -8))
    assert torch.equal(ours[-7:], torch.zeros(7))
    assert bool((ours[:-7] > 0).all())


def test_gradients_below_half_precision_survive() -> None:
    """Large states have small gradients: plain fp16 autograd rounds them to 0, ours stay in order."""
    model = random_model("llama")
    rows = PackedRows.pack([PROMPTS[0]], "cpu")
    image = PROMPTS[0]
    hidden = 1e4 * torch.randn(rows.total, WIDTH)
    truth = autograd_saliency(model.model, model.lm_head, 1, hidden, ROWS)[image]
    model.half()
    plain = autograd_saliency(model.model, model.lm_head, 1, hidden.half(), ROWS)[image]
    ours = proxy_saliency(hidden.half(), rows, proxy_of(model, hidden.half(), rows), ROWS)[image]
    assert float(plain.max()) == 0.0
    assert float(ours.min()) > 0.0
    assert spearman(ours, truth) > 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_ranks_as_fp32_does(family: str) -> None:
    model = random_model(family)
    rows = PackedRows.pack([PROMPTS[0]] * 3, "cpu")
    hidden = torch.randn(rows.total, WIDTH)
    wide = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), ROWS)
    model.bfloat16()
    half = hidden.bfloat16()
    narrow = proxy_saliency(half, rows, proxy_of(model, half, rows), ROWS)
    for sample in range(3):
        of_sample = rows.is_image & (rows.sample == sample)
        assert spearman(narrow[of_sample], wide[of_sample]) > 0.9


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation."""
    ranks = torch.stack((a.argsort().argsort(), b.argsort().argsort())).double()
    return float(torch.corrcoef(ranks)[0, 1])
