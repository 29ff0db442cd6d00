"""Only what no small noise changes is sure: neither tokens tied at the cut, nor those tied with the threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from trio_ray.lab.sure_choice import SureTrio
from trio_ray.method.selectors.trio import Trio


def choose(selector: Trio, score: list[float], hidden: Tensor, keep: int) -> set[int]:
    slots = torch.arange(len(score))[None]
    chosen = selector.choose(torch.tensor([score]), hidden, slots, torch.ones_like(slots, dtype=torch.bool), [keep])
    return set(chosen[0].nonzero().flatten().tolist())


def test_of_tokens_tied_at_the_cut_none_is_sure() -> None:
    score, hidden, selector = [9.0, 5.0, 1.0, 1.0, 0.2], torch.eye(5), SureTrio()
    assert choose(selector, score, hidden, 3) == choose(Trio(), score, hidden, 3)
    assert selector.sure == [frozenset({0, 1})]


def test_clear_scores_are_sure() -> None:
    selector = SureTrio()
    assert choose(selector, [9.0, 0.1, 5.0, 0.2], torch.eye(4), 2) == {0, 2}
    assert selector.sure == [frozenset({0, 2})]


def test_what_a_likeness_at_the_threshold_decides_is_not_sure() -> None:
    """The second token is as much like the first as suppression just bears; the third takes its place if it goes."""
    hidden = torch.eye(64)[:3].clone()
    hidden[1] = 0.8 * hidden[0] + 0.6 * hidden[1]
    selector = SureTrio()
    chosen = choose(selector, [9.0, 5.0, 1.0], hidden, 2)
    assert chosen == choose(Trio(), [9.0, 5.0, 1.0], hidden, 2)
    assert selector.sure == [frozenset({0})]


def test_samples_are_told_apart() -> None:
    selector = SureTrio()
    slots = torch.tensor([[0, 1, 2], [3, 4, 4]])
    real = torch.tensor([[True, True, True], [True, True, False]])
    score = torch.tensor([[9.0, 1.0, 1.0], [1.0, 9.0, 99.0]])
    selector.choose(score, torch.eye(5), slots, real, [2, 1])
    assert selector.sure == [frozenset({0}), frozenset({1})]


def test_the_first_prune_point_alone_is_noted() -> None:
    selector = SureTrio()
    for score in ([9.0, 0.1, 5.0, 0.2], [0.1, 9.0, 0.2, 5.0]):
        assert choose(selector, score, torch.eye(4), 2) == choose(Trio(), score, torch.eye(4), 2)
    assert selector.sure == [frozenset({0, 2})]
