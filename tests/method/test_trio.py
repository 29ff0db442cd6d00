"""The selector: which rows stay, from saliency and suppression together."""

from __future__ import annotations

import pytest
import torch

from tests.method.layers import FAMILIES, WIDTH, proxy_of, random_model
from tests.method.reference import autograd_saliency, greedy_suppression
from tests.method.test_saliency import PROMPTS
from trio_ray.method.rows import PackedRows
from trio_ray.method.selectors.trio import Trio

KEEP = [11, 3, 25, 0, 12, 1]


@pytest.mark.parametrize("threshold", [0.3, 0.8, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_keeps_what_autograd_and_a_greedy_loop_keep(family: str, threshold: float) -> None:
    model = random_model(family)
    rows = PackedRows.pack(PROMPTS, "cpu")
    hidden = torch.randn(rows.total, WIDTH) + torch.randn(WIDTH)
    selection = Trio(threshold=threshold).select(hidden, rows, proxy_of(model, hidden, rows), KEEP)
    expected = []
    for sample, mask in enumerate(PROMPTS):
        start, stop = rows.offsets[sample : sample + 2]
        score = autograd_saliency(model.model, model.lm_head, 1, hidden[start:stop], (-5, -4, -3, -2))
        image = mask.nonzero()[:, 0]
        chosen = greedy_suppression(score[image].tolist(), hidden[start:stop][image], KEEP[sample], threshold)
        stays = ~mask
        stays[image[chosen]] = True
        expected += [start + row for row in stays.nonzero()[:, 0].tolist()]
    assert selection.rows.tolist() == expected
    assert selection.score.shape == (rows.total,)


def test_text_rows_always_stay() -> None:
    model = random_model("llama")
    rows = PackedRows.pack(PROMPTS, "cpu")
    hidden = torch.randn(rows.total, WIDTH)
    selection = Trio().select(hidden, rows, proxy_of(model, hidden, rows), [0] * len(PROMPTS))
    assert selection.rows.tolist() == (~rows.is_image).nonzero()[:, 0].tolist()


def test_keeping_all_keeps_all() -> None:
    model = random_model("llama")
    rows = PackedRows.pack(PROMPTS, "cpu")
    hidden = torch.randn(rows.total, WIDTH)
    selection = Trio().select(hidden, rows, proxy_of(model, hidden, rows), rows.image_counts)
    assert selection.rows.tolist() == list(range(rows.total))


def test_a_selection_asks_for_no_gradient_of_weights_or_states() -> None:
    model = random_model("llama")
    rows = PackedRows.pack(PROMPTS[:2], "cpu")
    hidden = torch.randn(rows.total, WIDTH, requires_grad=True)
    selection = Trio().select(hidden, rows, proxy_of(model, hidden, rows), KEEP[:2])
    assert not selection.score.requires_grad
    assert hidden.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
