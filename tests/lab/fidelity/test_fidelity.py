"""The three studies against plain Hugging Face layers and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from tests.lab.results import asked, result
from tests.method.reference import autograd_saliency, reference_prefill, run_layer
from tests.model.corpus import prepare, samples_of_all_grids
from trio_ray.lab.fidelity.fidelity import depth_divergence, fine_and_coarse, rank_agreement
from trio_ray.method.method import Method
from trio_ray.method.selectors.trio import AUTHORS_ROWS
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica


@pytest.fixture
def batch(llama: Replica) -> list[PreparedSample]:
    return prepare(llama, samples_of_all_grids(7))


def parts(replica: Replica) -> tuple[Any, Any]:
    return replica.model.model.language_model, replica.model.lm_head  # type: ignore[union-attr]


def test_a_prune_that_drops_nothing_moves_nothing(llama: Replica, batch: list[PreparedSample]) -> None:
    methods = {name: Method.build(8, selector=name) for name in ("trio", "random")}
    records = depth_divergence(llama, batch, range(8), methods, 1.0)
    assert [(record["selector"], record["depth"]) for record in records] == [
        (name, depth) for depth in range(8) for name in methods
    ]
    for record in records:
        assert record["kl"] == pytest.approx([0.0] * 7, abs=1e-6)
        assert record["agrees"] == [True] * 7


def test_divergence_is_that_of_plain_layers(llama: Replica, batch: list[PreparedSample]) -> None:
    """Sum of p log(p / q): p from all tokens, q from TRIO's tokens, one prune point, authors' compaction."""
    language_model, head = parts(llama)
    for record in depth_divergence(llama, batch, (1, 4), {"trio": Method.build(8)}, 0.2):
        for place, sample in enumerate(batch):
            hidden, rows = llama.embed([sample])
            keep = round(0.2 * sample.image_tokens)
            whole = reference_prefill(language_model, head, hidden, rows.is_image, (), ()).logits
            pruned = reference_prefill(language_model, head, hidden, rows.is_image, (record["depth"],), (keep,)).logits
            p, q = whole.double().softmax(-1), pruned.double().softmax(-1)
            truth = float((p * (p / q).log()).sum())
            assert record["kl"][place] == pytest.approx(truth, abs=1e-4, rel=1e-3)
            assert record["agrees"][place] == (int(whole.argmax()) == int(pruned.argmax()))
        assert max(record["kl"]) > 0.01


def end_to_end(replica: Replica, sample: PreparedSample, depth: int) -> tuple[Tensor, Tensor]:
    """States before a layer, and the gradient norm there of the first answer token's loss, by autograd through
    Hugging Face's layers.
    """
    language_model, head = parts(replica)
    hidden, _ = replica.embed([sample])
    with torch.no_grad():
        for layer in range(depth):
            hidden = run_layer(language_model, layer, hidden[None])[0]
    with torch.enable_grad():
        leaf = hidden.detach().clone().requires_grad_()
        out = leaf
        for layer in range(depth, 8):
            out = run_layer(language_model, layer, out[None])[0]
        logits = head(language_model.norm(out[-1]))
        F.cross_entropy(logits[None], logits.detach().argmax()[None]).backward()
    assert leaf.grad is not None
    return hidden, leaf.grad.norm(dim=-1)


def test_agreement_is_that_of_autograd_near_and_far(llama: Replica, batch: list[PreparedSample]) -> None:
    """Spearman's correlation, and the best tenth in common, of two gradients that plain autograd gives."""
    language_model, head = parts(llama)
    for record in rank_agreement(llama, batch, (1, 5, 7)):
        for place, sample in enumerate(batch):
            hidden, far = end_to_end(llama, sample, record["depth"])
            near = autograd_saliency(language_model, head, record["depth"], hidden, AUTHORS_ROWS)
            image = llama.embed([sample])[1].is_image
            near, far = near[image], far[image]
            assert record["spearman"][place] == pytest.approx(spearmanr(near, far).statistic, abs=0.01)
            tenth = max(1, len(near) // 10)
            common = set(near.topk(tenth).indices.tolist()) & set(far.topk(tenth).indices.tolist())
            assert record["overlap"][place] == pytest.approx(len(common) / tenth)
        assert len(record["spearman"]) == len(record["overlap"]) == len(batch)


def test_at_the_last_layer_the_local_loss_of_the_last_row_is_the_true_one(
    replica: Replica, batch: list[PreparedSample]
) -> None:
    """There the proxy is the rest of the model: supervised on the answer's row alone, both gradients are the same."""
    last, before = rank_agreement(replica, prepare(replica, samples_of_all_grids(7)), (7, 6), supervised=(-1,))[::-1]
    assert (last["depth"], before["depth"]) == (7, 6)
    assert min(last["spearman"]) > 0.9999
    assert last["overlap"] == [1.0] * 7
    assert max(before["spearman"]) < 0.9999


def test_fine_and_coarse_questions_are_counted_apart() -> None:
    records = fine_and_coarse(
        [result("all tokens", 1.0, [1, 1, 1, 1, 1, 1]), result("trio", 0.1, [1, 0, 0, 1, 1, 1])], asked()
    )
    assert records[0] == {
        "method": "all tokens", "retention": 1.0, "fine": 1.0, "coarse": 1.0, "fine_questions": 2, "coarse_questions": 4
    }  # fmt: skip
    assert (records[1]["fine"], records[1]["coarse"]) == (0.5, 0.75)


def test_where_no_fine_question_was_asked_there_is_no_accuracy() -> None:
    coarse = [question for question in asked() if not question.fine]
    (record,) = fine_and_coarse([result("trio", 0.1, [1, 0, 1, 1])], coarse)
    assert (record["fine"], record["coarse"]) == (None, 0.75)
