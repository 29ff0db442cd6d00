"""Samples become batches of a bounded number of rows, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_ray.model.packing import Outcome, pack
from trio_ray.model.prepare import PreparedSample
from trio_ray.source.sample import BadSample, Reason


def outcome(index: int, rows: int | None) -> Outcome:
    """A sample of that many rows, or a bad one."""
    if rows is None:
        return BadSample(f"s{index}", index, Reason.IMAGE_CORRUPT, "")
    return PreparedSample(f"s{index}", index, "", (), (0,) * rows, (), None)


def rows_of(group: list[Outcome]) -> list[int]:
    return [item.rows for item in group if isinstance(item, PreparedSample)]


@given(st.lists(st.none() | st.integers(1, 150), max_size=40))
def test_order_is_kept_and_no_batch_of_several_exceeds_the_budget(sizes: list[int | None]) -> None:
    outcomes = [outcome(index, rows) for index, rows in enumerate(sizes)]
    groups = list(pack(outcomes, 100))
    assert [item for group in groups for item in group] == outcomes
    for group in groups:
        assert sum(rows_of(group)) <= 100 or len(rows_of(group)) == 1


def test_batches_are_as_full_as_the_order_allows() -> None:
    groups = list(pack([outcome(i, rows) for i, rows in enumerate([40, 60, 1, 99, 100])], 100))
    assert [rows_of(group) for group in groups] == [[40, 60], [1, 99], [100]]


def test_a_larger_sample_runs_alone() -> None:
    groups = list(pack([outcome(i, rows) for i, rows in enumerate([10, 500, 10])], 100))
    assert [rows_of(group) for group in groups] == [[10], [500], [10]]


def test_bad_samples_never_open_a_batch_of_their_own_beside_good_ones() -> None:
    groups = list(pack([outcome(i, rows) for i, rows in enumerate([None, 100, None, None, 1])], 100))
    assert [len(group) for group in groups] == [4, 1]
