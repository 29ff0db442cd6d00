"""Tokens drawn from logits: by their chances, cut at top_p, and the same for the same seed."""

from __future__ import annotations

import math

import pytest
import torch

from trio_ray.model.decode.choice import GREEDY, Sampling, choose

CHANCES = [0.1, 0.5, 0.15, 0.25]
LOGITS = torch.tensor([CHANCES]).log()


def drawn(how: Sampling, count: int) -> list[float]:
    """Shares of the tokens among draws by seeds 0, 1, ..."""
    sampling = [Sampling(how.temperature, how.top_p, seed) for seed in range(count)]
    tokens = choose(LOGITS.expand(count, -1), sampling, [0] * count)
    return [float((tokens == token).float().mean()) for token in range(len(CHANCES))]


def test_tokens_come_with_their_chances() -> None:
    assert drawn(Sampling(1.0), 4000) == pytest.approx(CHANCES, abs=0.03)


def test_temperature_sharpens() -> None:
    squares = [chance**2 for chance in CHANCES]
    assert drawn(Sampling(0.5), 4000) == pytest.approx([s / sum(squares) for s in squares], abs=0.03)
    assert drawn(Sampling(1e-30), 50) == [0, 1, 0, 0]


def test_top_p_leaves_the_most_likely_tokens_alone() -> None:
    """The token that crosses the bound is still among them."""
    assert drawn(Sampling(1.0, top_p=0.6), 4000) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    assert drawn(Sampling(1.0, top_p=0.5), 50) == [0, 1, 0, 0]


def test_greedy_rows_stay_greedy_beside_drawn_ones() -> None:
    logits = torch.randn((5, 30), generator=torch.Generator().manual_seed(0))
    how = [GREEDY, Sampling(2.0, seed=1), GREEDY, Sampling(2.0, seed=2), GREEDY]
    tokens = choose(logits, how, [3] * 5)
    assert torch.equal(tokens[::2], logits.argmax(-1)[::2])
    for number in (1, 3):
        assert tokens[number] == choose(logits[number : number + 1], [how[number]], [3])[0]
    later = [int(choose(logits[1:2], [how[1]], [step])[0]) for step in range(20)]
    assert len(set(later)) > 5, "every step draws anew"


@pytest.mark.parametrize(
    ("setting", "value"), [("temperature", -1.0), ("temperature", math.nan), ("top_p", 0.0), ("top_p", 1.5)]
)
def test_values_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        Sampling(**{setting: value})  # type: ignore[arg-type]
