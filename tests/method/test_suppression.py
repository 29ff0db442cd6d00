"""Batched suppression equals a plain greedy loop, whatever the features, the batch and the chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.method.reference import greedy_suppression
from trio_ray.method import suppression
from trio_ray.method.suppression import suppress


def choose(score: Tensor, features: Tensor, real: Tensor, keep: list[int], threshold: float) -> Tensor:
    """`suppress` on padded (B, N, d) features."""
    slots = torch.arange(score.numel()).view(score.shape)
    return suppress(score, features.flatten(0, 1), slots, real, keep, threshold)


def check(scores: list[Tensor], features: list[Tensor], keep: list[int], threshold: float, fill: float = 0.0) -> None:
    """Hold a ragged batch against the loop. `fill` is what stands in the padding."""
    longest = max(map(len, scores))
    score = torch.full((len(scores), longest), fill)
    padded = torch.full((len(scores), longest, features[0].shape[-1]), fill)
    real = torch.zeros(len(scores), longest, dtype=torch.bool)
    for sample, (values, rows) in enumerate(zip(scores, features, strict=True)):
        score[sample, : len(values)], padded[sample, : len(values)], real[sample, : len(values)] = values, rows, True
    chosen = choose(score, padded, real, keep, threshold)
    for sample, (values, rows) in enumerate(zip(scores, features, strict=True)):
        expected = greedy_suppression(values.tolist(), rows, keep[sample], threshold)
        assert chosen[sample].nonzero()[:, 0].tolist() == expected


def chain(length: int) -> Tensor:
    """Each token shares an axis with its two neighbours alone (cosine 0.5), so every decision waits for
    the one before it.
    """
    axes = torch.eye(length + 1)
    return axes[:-1] + axes[1:]


def clusters(count: int, size: int, spread: float) -> Tensor:
    return (torch.randn(count, 1, 8) + spread * torch.randn(count, size, 8)).flatten(0, 1)


FEATURES = {
    "random": lambda: torch.randn(150, 8),
    "clustered": lambda: clusters(15, 10, 0.2),
    "tight_clusters": lambda: clusters(5, 30, 0.01),
    "duplicates": lambda: torch.randn(10, 6).repeat(15, 1),
    "all_equal": lambda: torch.ones(150, 4),
    "opposite": lambda: torch.cat((torch.ones(75, 4), -torch.ones(75, 4))),
    "with_zero_rows": lambda: torch.randn(150, 6) * (torch.arange(150) % 3 > 0)[:, None],
    "low_dimension": lambda: torch.randn(150, 2),
    "large": lambda: 1e4 * torch.randn(150, 5),
}


@pytest.mark.parametrize("keep", [0, 1, 20, 90, 149, 150])
@pytest.mark.parametrize("name", FEATURES)
def test_equals_the_greedy_loop(name: str, keep: int) -> None:
    torch.manual_seed(keep)
    check([torch.rand(150)], [FEATURES[name]()], [keep], 0.8)


@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.parametrize("length", [9, 64, 250])
def test_a_chain_in_which_each_suppresses_the_next_is_decided_to_its_end(length: int, order: str) -> None:
    """The fixpoint of a chain takes as many rounds as the chain is long: a fixed number of rounds would err."""
    score = torch.linspace(2, 1, length) if order == "forward" else torch.linspace(1, 2, length)
    check([score], [chain(length)], [length // 2], 0.4)


def test_equal_scores_are_taken_in_spatial_order() -> None:
    check([torch.ones(100)], [torch.randn(100, 16)], [30], 0.8)
    check([torch.tensor([1.0, 2.0, 1.0, 2.0] * 25)], [torch.randn(100, 16)], [60], 0.8)


def test_too_few_survivors_are_filled_up_by_score() -> None:
    score = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    chosen = choose(score[None], features[None], torch.ones(1, 5, dtype=torch.bool), [3], 0.8)
    assert chosen[0].tolist() == [True, True, False, True, False]  # 0 and 3 survive, 1 is the best of the rest


def test_a_threshold_above_1_ranks_by_score_alone() -> None:
    score = torch.rand(40)
    chosen = choose(score[None], torch.ones(1, 40, 4), torch.ones(1, 40, dtype=torch.bool), [7], 1.01)
    assert chosen[0].nonzero()[:, 0].tolist() == sorted(score.topk(7).indices.tolist())


def test_the_window_grows_until_it_holds_enough_survivors() -> None:
    """The best 400 candidates are copies of one token: the survivors lie behind several windows."""
    features = torch.cat((torch.ones(400, 64), torch.randn(100, 64)))
    score = torch.linspace(2, 1, 500)
    check([score], [features], [20], 0.8)


@pytest.mark.parametrize("fill", [0.0, 1e6, float("nan"), float("inf")])
def test_samples_of_a_ragged_batch_do_not_touch_each_other_or_the_padding(fill: float) -> None:
    torch.manual_seed(1)
    sizes, keep = [130, 1, 64, 7, 99], [40, 1, 0, 7, 3]
    check([torch.rand(size) for size in sizes], [torch.randn(size, 3) for size in sizes], keep, 0.8, fill)


@pytest.mark.parametrize("elements", [1, 5000, 20000])
def test_chunks_of_the_batch_change_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    monkeypatch.setattr(suppression, "SIMILARITY_ELEMENTS", elements)
    sizes = [80, 60, 100, 80, 20, 90, 33]
    features = [clusters(5, size // 5 + 1, 0.3)[:size] for size in sizes]
    check([torch.rand(size) for size in sizes], features, [30, 20, 10, 0, 20, 60, 33], 0.7)


def test_nan_scores_rank_last_and_crash_nothing() -> None:
    score = torch.tensor([[float("nan"), 3.0, float("nan"), 2.0]])
    chosen = choose(score, torch.eye(4)[None], torch.ones(1, 4, dtype=torch.bool), [2], 0.8)
    assert chosen[0].tolist() == [False, True, False, True]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_batch_equals_the_greedy_loop(data: st.DataObject) -> None:
    """Features on a coarse grid, so that ties, duplicates and similarities at the threshold are frequent."""
    sizes = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=4))
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    features = [torch.randint(-2, 3, (size, 3)).float() for size in sizes]
    scores = [torch.randint(0, 9, (size,)).float() for size in sizes]
    keep = [data.draw(st.integers(0, size)) for size in sizes]
    check(scores, features, keep, data.draw(st.sampled_from([-0.9, 0.11, 0.55, 0.79, 0.93, 1.2])))
