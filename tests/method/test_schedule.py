"""Schedules: the authors' numbers come out, and any feasible budget is met."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trio_ray.method.schedule import AUTHORS_SHAPE, Schedule


def test_one_ninth_of_llava_1_5_gives_the_authors_counts() -> None:
    schedule = Schedule(32, AUTHORS_SHAPE.prune_points, retention=1 / 9)
    assert schedule.counts(576) == (92, 54, 22) == AUTHORS_SHAPE.weights
    assert schedule.mean_tokens(576) == pytest.approx(64, abs=0.5)


def test_64_tokens_of_llava_1_5_give_the_authors_counts() -> None:
    assert Schedule(32, AUTHORS_SHAPE.prune_points, tokens=64).counts(576) == (92, 54, 22)


def test_two_ninths_of_llava_1_5_come_near_the_authors_counts() -> None:
    """Their 218, 128, 54 have other proportions than their 92, 54, 22; the budget is the same."""
    counts = Schedule(32, AUTHORS_SHAPE.prune_points, retention=2 / 9).counts(576)
    assert counts == pytest.approx((218, 128, 54), abs=2)
    assert Schedule(32, AUTHORS_SHAPE.prune_points, keep=(218, 128, 54)).mean_tokens(576) == pytest.approx(128, abs=0.5)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    layers = draw(st.integers(2, 80))
    points = tuple(sorted(draw(st.sets(st.integers(0, layers - 1), min_size=1, max_size=5))))
    weights = sorted(draw(st.lists(st.floats(0.1, 100), min_size=len(points), max_size=len(points))), reverse=True)
    retention = draw(st.floats(0.01, 1.0))
    assume(retention > points[0] / layers)
    return Schedule(layers, points, retention=retention, weights=tuple(weights)), draw(st.integers(1, 5000))


@given(schedules())
def test_any_feasible_retention_is_met_within_half_a_token_a_layer(drawn: tuple[Schedule, int]) -> None:
    schedule, tokens = drawn
    assert schedule.retention is not None
    counts = schedule.counts(tokens)
    assert list(counts) == sorted(counts, reverse=True)
    assert all(1 <= count <= tokens for count in counts)
    # At least one token stays at every prune point, also where the budget has less than that.
    least = schedule.floor * tokens + (1 - schedule.floor)
    assert schedule.mean_tokens(tokens) == pytest.approx(max(schedule.retention * tokens, least), abs=0.5) or (
        schedule.retention * tokens <= schedule.mean_tokens(tokens) <= schedule.retention * tokens + 1.0
    )


@given(st.integers(1, 4000), st.integers(2, 60))
def test_retention_1_keeps_every_token(tokens: int, layers: int) -> None:
    schedule = Schedule(layers, tuple(sorted({0, layers // 2})), retention=1.0, weights=(92, 22)[: 1 + (layers > 1)])
    assert set(schedule.counts(tokens)) == {tokens}
    assert schedule.mean_tokens(tokens) == tokens


def test_what_an_early_point_cannot_use_goes_to_the_later_ones() -> None:
    """At 90 % the authors' weights would keep 140 % of the tokens at the first point; the surplus is not lost."""
    schedule = Schedule(32, AUTHORS_SHAPE.prune_points, retention=0.9)
    first, second, third = schedule.counts(1000)
    assert first == second == 1000
    assert 0 < third < 1000
    assert schedule.mean_tokens(1000) == pytest.approx(900, abs=0.5)


def test_fixed_counts_are_capped_by_what_the_image_has() -> None:
    schedule = Schedule(32, AUTHORS_SHAPE.prune_points, keep=(92, 54, 22))
    assert schedule.counts(60) == (60, 54, 22)
    assert schedule.counts(10) == (10, 10, 10)
    assert schedule.counts(0) == (0, 0, 0)


def test_a_fixed_budget_is_met_where_the_image_has_enough() -> None:
    schedule = Schedule(32, AUTHORS_SHAPE.prune_points, tokens=320)
    assert schedule.mean_tokens(2880) == pytest.approx(320, abs=0.5)
    assert schedule.mean_tokens(1800) == pytest.approx(320, abs=0.5)
    assert schedule.counts(200) == (200, 200, 200)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"prune_points": (4,), "weights": (1,), "retention": 0.125}, "first prune point"),
        ({"prune_points": (4,), "weights": (1,), "retention": 0.05}, "first prune point"),
        ({"prune_points": (), "weights": (), "retention": 0.5}, "first prune point"),
        ({"prune_points": (32,), "weights": (1,), "retention": 0.5}, "prune points"),
        ({"prune_points": (-1,), "weights": (1,), "retention": 0.5}, "prune points"),
        ({"prune_points": (5, 2), "weights": (2, 1), "retention": 0.5}, "prune points"),
        ({"prune_points": (2, 2), "weights": (2, 1), "retention": 0.5}, "prune points"),
        ({"prune_points": (1, 2), "weights": (2, 1, 1), "retention": 0.5}, "weights"),
        ({"prune_points": (1, 2), "weights": (2, 0), "retention": 0.5}, "weights"),
        ({"prune_points": (1, 2), "keep": (5,)}, "keep"),
        ({"prune_points": (1, 2), "keep": (5, 2), "retention": 0.5}, "exactly one"),
        ({"prune_points": (1, 2)}, "exactly one"),
    ],
)
def test_what_cannot_be_met_is_refused(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Schedule(32, **settings)  # type: ignore[arg-type]


def test_default_prune_points_scale_with_depth() -> None:
    assert AUTHORS_SHAPE.points_for(32) == (1, 10, 15)
    assert AUTHORS_SHAPE.points_for(64) == (2, 20, 30)
    assert AUTHORS_SHAPE.points_for(28) == (1, 9, 13)
    assert AUTHORS_SHAPE.points_for(8) == (1, 2, 4)


@pytest.mark.parametrize(
    ("settings", "tokens", "has_room"),
    [
        ({"prune_points": (1,), "tokens": 64}, 2047, True),
        ({"prune_points": (1,), "tokens": 64}, 2048, False),
        ({"prune_points": (1,), "tokens": 64}, 2880, False),
        ({"prune_points": (0,), "tokens": 64}, 10**6, True),
        ({"prune_points": (), "tokens": 64}, 64, True),
        ({"prune_points": (), "tokens": 64}, 65, False),
        ({"prune_points": (16,), "retention": 0.6}, 2880, True),
        ({"prune_points": (16,), "keep": (1,)}, 2880, True),
    ],
)
def test_a_fixed_budget_that_the_first_layers_use_up_is_told(
    settings: dict[str, object], tokens: int, has_room: bool
) -> None:
    weights = () if settings["prune_points"] == () else (1,)
    assert Schedule(32, weights=weights, **settings).has_room_for(tokens) == has_room  # type: ignore[arg-type]


@given(st.integers(2, 128), st.floats(0.001, 1.0))
def test_default_prune_points_can_meet_every_retention(layers: int, retention: float) -> None:
    points = AUTHORS_SHAPE.points_for(layers, retention)
    assert list(points) == sorted(set(points))
    Schedule(layers, points, retention=retention, weights=AUTHORS_SHAPE.weights_for(len(points)))
