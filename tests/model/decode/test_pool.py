"""Rows of the pool: who has which, and that nothing is lost or given twice."""

from __future__ import annotations

import random

import pytest
import torch

from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.model.decode.extents import Extents
from trio_ray.model.decode.pool import KVPool, OutOfRows, PoolShape

SHAPE = PoolShape((1, 3), kv_heads=2, head_dim=4, dtype=torch.float32)
CPU = torch.device("cpu")


def prefix_of(first: int, second: int) -> Prefix:
    """A prefix of so many rows in two runs of layers."""
    segments = tuple(
        Segment(
            start,
            *torch.randn(2, layers, rows, 2, 4),
            torch.arange(rows, dtype=torch.int32),
            torch.ones(rows, dtype=torch.bool),
        )
        for start, layers, rows in ((0, 1, first), (1, 3, second))
    )
    return Prefix(first, first, segments, (), torch.zeros(1, dtype=torch.int32), torch.zeros(1))


def test_ranges_never_overlap_and_free_neighbours_become_one() -> None:
    generator = random.Random(0)
    extents, taken = Extents(200, first=1), []
    for _ in range(2000):
        if taken and generator.random() < 0.5:
            extents.give_back(*taken.pop(generator.randrange(len(taken))))
        else:
            rows = generator.randrange(1, 30)
            start = extents.take(rows)
            if start is not None:
                taken.append((start, rows))
        used = sorted(row for start, rows in taken for row in range(start, start + rows))
        assert len(set(used)) == len(used)
        assert not used or (used[0] >= 1 and used[-1] < 200)
        assert extents.free == 199 - len(used)
    for start, rows in taken:
        extents.give_back(start, rows)
    assert extents.take(199) == 1


def test_a_prefix_is_free_when_nobody_holds_it() -> None:
    pool = KVPool(SHAPE, CPU, [20, 10])
    prefix = prefix_of(12, 5)
    held = pool.add(prefix)
    pool.hold(held)
    for run, segment in enumerate(prefix.segments):
        rows = slice(held.starts[run], held.starts[run] + segment.rows)
        assert torch.equal(pool.keys(run)[:, rows], segment.keys)
        assert torch.equal(pool.values(run)[:, rows], segment.values)
    assert pool.free_rows == (8, 5)
    pool.release(held)
    assert pool.used
    pool.release(held)
    assert not pool.used
    assert pool.free_rows == (20, 10)


def test_rows_that_are_short_in_one_run_are_taken_in_none() -> None:
    pool = KVPool(SHAPE, CPU, [20, 10])
    with pytest.raises(OutOfRows, match="11 rows are wanted and 10 of"):
        pool.take_own(11)
    assert pool.free_rows == (20, 10)


def test_what_is_in_the_pool_stays_when_it_grows_or_moves_to_more_room() -> None:
    pool = KVPool(SHAPE, CPU, [20, 10])
    prefix = prefix_of(12, 5)
    held, own = pool.add(prefix), pool.take_own(3)
    for run, start in enumerate(own.starts):
        pool.keys(run)[:, start : start + 3] = 7.0
    pool.grow([0, 20])
    assert pool.free_rows == (5, 22)
    larger = pool.move_own(own, used=2, rows=5)
    for run, segment in enumerate(prefix.segments):
        assert torch.equal(pool.keys(run)[:, held.starts[run] : held.starts[run] + segment.rows], segment.keys)
        assert bool((pool.keys(run)[:, larger.starts[run] : larger.starts[run] + 2] == 7.0).all())
    assert pool.free_rows == (3, 20)
