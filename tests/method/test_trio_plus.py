"""trio-plus: every supervised row is heard alike, and a share of what is kept is an even sample of the rest."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.method.layers import FAMILIES, proxy_of, random_model
from tests.method.prompts import IMAGES, KEEP, PROMPTS, kept_numbers, select, states
from tests.method.reference import greedy_suppression, run_layer
from tests.method.test_saliency import relative_error
from trio_ray.method.rows import PackedRows
from trio_ray.method.saliency import proxy_saliency
from trio_ray.method.selectors.trio_plus import TrioPlus

ROWS = (-5, -4, -3, -2, -1)


def balanced_saliency(model: object, hidden: Tensor) -> Tensor:
    """By autograd through the whole layer: each supervised row's loss is scaled until its gradient where the
    attention ends has length 1.
    """
    outputs: list[Tensor] = []
    layer = model.model.layers[1]  # type: ignore[attr-defined]
    handle = layer.self_attn.o_proj.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
    with torch.enable_grad():
        leaf = hidden.detach().clone().requires_grad_()
        logits = model.lm_head(model.model.norm(run_layer(model.model, 1, leaf[None])))[0]  # type: ignore[attr-defined]
        handle.remove()
        total = torch.zeros(())
        for row in ROWS:
            if len(leaf) + row >= 0:
                loss = F.cross_entropy(logits[row], logits[row].detach().argmax())
                (at_output,) = torch.autograd.grad(loss, outputs[0], retain_graph=True)
                total = total + loss / at_output[0, row].norm()
        (gradient,) = torch.autograd.grad(total, leaf)
    return gradient.norm(dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_balanced_saliency_equals_autograd(family: str) -> None:
    model, rows = random_model(family), PackedRows.pack(PROMPTS, "cpu")
    hidden = torch.cat(states())
    proxy = proxy_of(model, hidden, rows)
    ours = proxy_saliency(hidden, rows, proxy, ROWS, balanced=True)
    for sample, (mask, one) in enumerate(zip(PROMPTS, states(), strict=True)):
        if mask.any():
            part = ours[rows.offsets[sample] : rows.offsets[sample + 1]]
            assert relative_error(part[mask], balanced_saliency(model, one)[mask]) < 1e-4


def test_a_certain_row_is_heard_as_loudly_as_a_doubtful_one() -> None:
    """Balanced, one row alone gives scores that do not depend on how sure its prediction is."""
    model, rows = random_model("llama"), PackedRows.pack([PROMPTS[0]], "cpu")
    hidden = states()[0]
    doubtful = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), (-2,), balanced=True)
    plain = proxy_saliency(hidden, rows, proxy_of(model, hidden, rows), (-2,))
    torch.testing.assert_close(doubtful / doubtful.max(), plain / plain.max(), rtol=1e-4, atol=1e-6)
    assert float(doubtful.max()) != pytest.approx(float(plain.max()), rel=0.1)


@pytest.mark.parametrize(("first", "salient"), [(0.75, [3, 5, 1, 6, 0, 0, 3, 1]), (0.0, KEEP)])
def test_the_salient_share_comes_first_and_the_rest_is_spread_over_what_is_left(
    first: float, salient: list[int]
) -> None:
    rows, selection = select(TrioPlus(first_sample=first), range(len(PROMPTS)), KEEP)
    for sample, numbers in enumerate(kept_numbers(rows, selection)):
        mask, hidden = PROMPTS[sample], states()[sample]
        score = selection.score[rows.offsets[sample] : rows.offsets[sample + 1]][mask]
        best = greedy_suppression(score.tolist(), hidden[mask], salient[sample], 0.8)
        assert set(best) <= set(numbers)
        others = [number for number in range(IMAGES[sample]) if number not in best]
        places = [others.index(number) for number in numbers if number not in best]
        assert len(places) == KEEP[sample] - salient[sample]
        gaps = [later - earlier for earlier, later in pairwise(places)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_its_rows_positions_and_threshold_are_its_own() -> None:
    assert (TrioPlus().supervised_rows, TrioPlus().positions, TrioPlus().threshold) == (ROWS, "original", 0.8)
