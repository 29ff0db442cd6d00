"""Target rows and their attention: the pieces that the saliency and the attention scores share."""

from __future__ import annotations

import pytest
import torch

from tests.method.layers import FAMILIES, proxy_of, random_model
from tests.method.prompts import PROMPTS, states
from tests.method.reference import eager_attention
from tests.method.test_saliency import prompt
from trio_ray.method.proxy import rms_norm
from trio_ray.method.rows import PackedRows
from trio_ray.method.supervision import TargetRows, attend_from, group_heads, ungroup_heads


def test_rows_are_counted_from_each_samples_end_and_weigh_the_same() -> None:
    rows = PackedRows.pack([prompt(2, 3, 4), prompt(0, 5, 1)], "cpu")
    target = TargetRows.of(rows, (-5, -2, -1))
    assert target.flat.tolist() == [4, 7, 8, 10, 13, 14]
    assert target.weight.tolist() == pytest.approx([1 / 3] * 6)
    assert target.per_sample == 3


def test_rows_before_a_samples_start_weigh_nothing_and_stay_within_the_sample() -> None:
    rows = PackedRows.pack([prompt(2, 3, 4), prompt(0, 2, 1)], "cpu")
    target = TargetRows.of(rows, (-5, -4, -3, -2))
    assert target.flat.tolist() == [4, 5, 6, 7, 9, 9, 9, 10]
    assert target.weight.tolist() == pytest.approx([0.25] * 4 + [0, 0, 0.5, 0.5])


@pytest.mark.parametrize("from_end", [(-1,), (-5, -4, -3, -2), (-9, -1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_the_targets_equals_the_plain_layers(family: str, from_end: tuple[int, ...]) -> None:
    """Every head's probabilities, causal, over the sample's own rows; 0 for padding."""
    model, rows = random_model(family), PackedRows.pack(PROMPTS, "cpu")
    hidden = torch.cat(states())
    proxy, target = proxy_of(model, hidden, rows), TargetRows.of(rows, from_end)
    normed = rms_norm(hidden, proxy.norm_weight, proxy.norm_eps)
    probs = attend_from(normed, rows, proxy, target).probs
    assert probs.shape == (
        len(PROMPTS), proxy.kv_heads, proxy.heads // proxy.kv_heads * len(from_end), rows.padded[0].shape[1]
    )  # fmt: skip
    model.set_attn_implementation("eager")
    for sample, one in enumerate(states()):
        length = len(one)
        by_head = probs[sample].unflatten(1, (-1, len(from_end))).flatten(0, 1)  # (heads, P, S)
        assert not by_head[..., length:].any()
        truth = eager_attention(model, 1, one)
        for place, row in enumerate(from_end):
            if length + row >= 0:
                torch.testing.assert_close(by_head[:, place, :length], truth[:, row], atol=1e-6, rtol=1e-4)


def test_ungrouping_heads_undoes_grouping() -> None:
    rows = PackedRows.pack([prompt(2, 3, 4), prompt(0, 5, 1)], "cpu")
    hidden = torch.randn(rows.total, 48)
    proxy, target = proxy_of(random_model("mistral_grouped"), hidden, rows), TargetRows.of(rows, (-3, -1))
    x = torch.randn(4, proxy.heads, proxy.head_dim)
    grouped = group_heads(x, proxy, target)
    assert grouped.shape == (2, 2, 4, proxy.head_dim)
    assert torch.equal(grouped[1, 1, 3], x[3, 3])  # sample 1, head 3 is the second of key head 1, its last target row
    assert torch.equal(ungroup_heads(grouped, proxy, target), x.flatten(1))
