"""What every selector promises, and what sets the plain ones apart."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.method.layers import FAMILIES, proxy_of, random_model
from tests.method.prompts import IMAGES, KEEP, KEEP_LATER, PROMPTS, kept_numbers, select, states
from tests.method.reference import eager_attention, greedy_suppression
from trio_ray.method.rows import PackedRows, Positions
from trio_ray.method.selectors.attention import AttentionScore
from trio_ray.method.selectors.base_view import BaseView
from trio_ray.method.selectors.catalogue import bundled_selectors, make_selector
from trio_ray.method.selectors.groups import Groups
from trio_ray.method.selectors.random import RandomChoice
from trio_ray.method.selectors.selector import Selector, SuppressingSelector
from trio_ray.method.selectors.uniform import Uniform
from trio_ray.method.suppression import NO_SUPPRESSION

EVERYBODY = range(len(PROMPTS))
SUPPRESSING = [name for name, kind in bundled_selectors().items() if issubclass(kind, SuppressingSelector)]
"""Selectors that keep the best scores and skip what resembles a better one."""


@pytest.fixture(params=bundled_selectors())
def selector(request: pytest.FixtureRequest) -> Selector:
    return make_selector(request.param)


@pytest.mark.parametrize("keep", [KEEP, IMAGES, [0] * len(PROMPTS), [count // 2 for count in IMAGES]])
def test_keeps_the_wanted_number_of_image_rows_and_all_text_rows(selector: Selector, keep: list[int]) -> None:
    rows, selection = select(selector, EVERYBODY, keep)
    assert [len(numbers) for numbers in kept_numbers(rows, selection)] == keep
    assert selection.rows.tolist() == sorted(set(selection.rows.tolist()))
    assert set((~rows.is_image).nonzero()[:, 0].tolist()) <= set(selection.rows.tolist())
    assert selection.rows.dtype == torch.int64
    assert selection.score.shape == (rows.total,)
    assert selection.score.dtype == torch.float32


@pytest.mark.parametrize("order", [[7, 2, 5, 0, 3, 6, 1, 4], [1, 0], [4, 3, 6, 2]], ids=["all", "two", "four"])
def test_a_samples_choice_does_not_depend_on_its_company(selector: Selector, order: list[int]) -> None:
    rows, selection = select(selector, order, [KEEP[member] for member in order])
    for member, numbers in zip(order, kept_numbers(rows, selection), strict=True):
        alone, choice = select(selector, [member], [KEEP[member]])
        assert numbers == kept_numbers(alone, choice)[0]


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("name", bundled_selectors())
def test_a_later_prune_chooses_among_what_is_left_whatever_the_company(name: str, positions: Positions) -> None:
    selector, model, hidden = make_selector(name), random_model("llama"), states()

    def prune_twice(members: list[int]) -> tuple[list[list[int]], list[list[int]]]:
        rows, once = select(selector, members, [KEEP[member] for member in members], "llama")
        left = rows.keep(once.rows, [KEEP[member] for member in members], positions)
        packed = torch.cat([hidden[member] for member in members])[once.rows]
        twice = selector.select(packed, left, proxy_of(model, packed, left), [KEEP_LATER[member] for member in members])
        return kept_numbers(rows, once), kept_numbers(left, twice)

    first, second = prune_twice([6, 0, 7, 5, 1, 3, 2, 4])
    for place, member in enumerate([6, 0, 7, 5, 1, 3, 2, 4]):
        assert set(second[place]) <= set(first[place])
        assert len(second[place]) == KEEP_LATER[member]
        assert [numbers[0] for numbers in prune_twice([member])] == [first[place], second[place]]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, NO_SUPPRESSION])
@pytest.mark.parametrize("name", SUPPRESSING)
def test_keeps_the_best_scores_and_skips_what_is_as_similar_as_the_threshold(name: str, threshold: float) -> None:
    rows, selection = select(make_selector(name, {"threshold": threshold}), EVERYBODY, KEEP)
    expected = []
    for sample, (mask, hidden) in enumerate(zip(PROMPTS, states(), strict=True)):
        score = selection.score[rows.offsets[sample] : rows.offsets[sample + 1]]
        expected.append(greedy_suppression(score[mask].tolist(), hidden[mask], KEEP[sample], threshold))
    assert kept_numbers(rows, selection) == expected


def test_suppression_is_there_for_trio_random_and_attention() -> None:
    assert {"trio", "random", "attention"} <= set(SUPPRESSING)
    thresholds = [make_selector(name).settings["threshold"] for name in ("trio", "random", "attention")]
    assert thresholds == [0.8, NO_SUPPRESSION, NO_SUPPRESSION]


# --- random ---


def test_random_is_repeated_by_its_seed_and_changed_by_another() -> None:
    choices = [kept_numbers(*select(RandomChoice(seed=seed), [0, 1, 2], [13, 12, 6])) for seed in (0, 0, 1, 2)]
    assert choices[0] == choices[1]
    assert len({str(choice) for choice in choices}) == 3


def test_random_looks_at_nothing_and_prefers_nobody() -> None:
    """Over 400 seeds each of 40 tokens is kept about 100 times (10 of 40; five standard deviations are 43)."""
    rows = PackedRows.pack([PROMPTS[0]], "cpu")
    proxy = proxy_of(random_model("llama"), states()[0], rows)
    counts = torch.zeros(40)
    for seed in range(400):
        here, there = (
            RandomChoice(seed=seed).select(hidden, rows, proxy, [10]) for hidden in (states()[0], -states()[0])
        )
        assert torch.equal(here.rows, there.rows)
        counts[kept_numbers(rows, here)[0]] += 1
    assert counts.sum() == 4000
    assert bool(((counts > 57) & (counts < 143)).all())


def test_random_takes_numbers_beyond_the_prompts_rows() -> None:
    """Behind an encoder a short prompt's rows carry the numbers that its tokens had among all."""
    rows = PackedRows.pack([PROMPTS[2]], "cpu").renumbered(torch.arange(17) * 50 + 3)
    hidden = states()[2]
    selection = RandomChoice().select(hidden, rows, proxy_of(random_model("llama"), hidden, rows), [5])
    (numbers,) = kept_numbers(rows, selection)
    assert len(numbers) == 5
    assert set(numbers) <= set(range(3, 17 * 50 + 3, 50))


# --- uniform ---


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=4))
def test_uniform_leaves_gaps_that_differ_by_at_most_one(sizes: list[tuple[int, int]]) -> None:
    count = torch.tensor([tokens for tokens, _ in sizes])[:, None]
    keep = [min(tokens, wanted) for tokens, wanted in sizes]
    real = torch.arange(int(count.max())) < count
    chosen = Uniform().choose(torch.zeros(real.shape), torch.empty(0, 1), torch.empty(0), real, keep)
    for (tokens, _), wanted, row in zip(sizes, keep, chosen, strict=True):
        numbers = row.nonzero()[:, 0].tolist()
        assert len(numbers) == wanted
        around = [*numbers, *([numbers[0] + tokens] if numbers else [])]
        gaps = {later - earlier for earlier, later in pairwise(around)}
        assert not gaps or max(gaps) - min(gaps) <= 1
        assert all(number < tokens for number in numbers)


# --- base view ---


def test_base_view_takes_the_tiles_only_when_the_base_view_is_used_up() -> None:
    rows = PackedRows.pack([torch.ones(20, dtype=torch.bool)], "cpu")
    hidden = torch.randn(20, 8)
    for keep in (3, 6, 11):
        selection = BaseView(view_tokens=6).select(hidden, rows, proxy_of(random_model("llama"), hidden, rows), [keep])
        numbers = selection.rows.tolist()
        assert len(numbers) == keep
        assert sum(number < 6 for number in numbers) == min(keep, 6)


# --- groups ---


@pytest.mark.parametrize("large", [4, 30])
def test_groups_gives_a_small_group_as_many_places_as_a_large_one(large: int) -> None:
    """Whoever is asked about the small one would otherwise find nothing of it."""
    torch.manual_seed(0)
    centre = F.normalize(torch.randn(2, 16), dim=-1)
    hidden = torch.cat([centre[0] + 0.05 * torch.randn(large, 16), centre[1] + 0.05 * torch.randn(4, 16)])
    rows = PackedRows.pack([torch.ones(large + 4, dtype=torch.bool)], "cpu")
    selector = Groups(directions=1, threshold=NO_SUPPRESSION, first_sample=0.0)
    selection = selector.select(hidden, rows, proxy_of(random_model("llama"), hidden, rows), [4])
    assert sum(row < large for row in selection.rows.tolist()) == 2


# --- attention ---


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_what_the_last_row_of_the_plain_layer_attends_to(family: str) -> None:
    """Mean over heads of the probabilities that Hugging Face's eager attention returns."""
    model, rows = random_model(family), PackedRows.pack(PROMPTS, "cpu")
    hidden = torch.cat(states())
    score = AttentionScore().score(hidden, rows, proxy_of(model, hidden, rows))
    model.set_attn_implementation("eager")
    for sample, one in enumerate(states()):
        probs = eager_attention(model, 1, one)
        ours = score[rows.offsets[sample] : rows.offsets[sample + 1]]
        torch.testing.assert_close(ours, probs[:, -1].mean(0), atol=1e-6, rtol=1e-4)
        assert float(ours.sum()) == pytest.approx(1.0, abs=1e-5)
