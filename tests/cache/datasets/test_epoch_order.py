"""The order of an epoch: every sample once over all ranks, the same each time, another one each epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ray.cache.datasets.epoch_order import EpochOrder

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12).map(lambda counts: np.array(counts, np.int64))


def order(counts: list[int] | np.ndarray, rank: int = 0, world_size: int = 1, **settings: int) -> EpochOrder:
    plain = EpochOrder(np.array(counts, np.int64), rank, world_size, shuffle=True, seed=0, epoch=0, window=16)
    return replace(plain, **settings)


@given(
    counts=COUNTS,
    world_size=st.integers(1, 5),
    seed=st.integers(0, 9),
    shuffle=st.booleans(),
    window=st.integers(1, 40),
)
def test_each_sample_comes_once_over_all_ranks_and_shares_differ_by_one_at_most(
    counts: np.ndarray, world_size: int, seed: int, shuffle: bool, window: int
) -> None:
    ranks = [EpochOrder(counts, rank, world_size, shuffle, seed, 3, window) for rank in range(world_size)]
    numbers = [rank.numbers(0, len(rank)) for rank in ranks]
    assert sorted(number for share in numbers for number in share) == list(range(counts.sum()))
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1


@given(counts=COUNTS, size=st.integers(1, 50), shuffle=st.booleans())
def test_pieces_of_any_size_make_up_the_whole(counts: np.ndarray, size: int, shuffle: bool) -> None:
    whole = EpochOrder(counts, 1, 2, shuffle, seed=5, epoch=0, window=7)
    pieces = [number for start in range(0, len(whole), size) for number in whole.numbers(start, start + size)]
    assert pieces == whole.numbers(0, len(whole))


def test_without_shuffling_the_order_is_the_caches() -> None:
    plain = replace(order([5, 4, 3]), shuffle=False)
    assert plain.numbers(0, 12) == list(range(12))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_seed_and_epoch_change_the_order_and_nothing_else_does(change: dict[str, int]) -> None:
    first = order([40, 40, 40])
    assert order([40, 40, 40]).numbers(0, 120) == first.numbers(0, 120)
    assert replace(first, **change).numbers(0, 120) != first.numbers(0, 120)


def test_a_window_mixes_parts_and_moves_nearly_every_sample() -> None:
    numbers = order([10] * 10, window=100).numbers(0, 100)
    assert len({number // 10 for number in numbers[:20]}) > 5
    assert sum(number == place for place, number in enumerate(numbers)) < 10


def test_a_rank_reads_few_parts() -> None:
    """Shares are consecutive in the parts' order, so that ranks do not all read the same objects."""
    share = order([10] * 12, rank=1, world_size=4)
    assert len({number // 10 for number in share.numbers(0, len(share))}) <= 4
