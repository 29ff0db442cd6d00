"""Where restored rows go."""

from __future__ import annotations

import torch

from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.target import RowTarget


def shape(rows: int) -> SegmentShape:
    return SegmentShape(0, 2, rows, 0, 0, 2, 4, torch.float32)


def test_each_samples_rows_are_consecutive_from_its_own_start_on() -> None:
    states = torch.empty(2, 40, 2, 4)
    target = RowTarget(states, states, (30, 4, 9, 20))
    assert target.rows([shape(3), shape(0), shape(2), shape(1)]).tolist() == [30, 31, 32, 9, 10, 20]


def test_fresh_rows_lie_one_sample_behind_the_other() -> None:
    shapes = [shape(3), shape(0), shape(2)]
    target = RowTarget.fresh(shapes, torch.device("cpu"))
    assert target.keys.shape == target.values.shape == (2, 5, 2, 4)
    assert target.starts == (0, 3, 3)
    assert target.rows(shapes).tolist() == [0, 1, 2, 3, 4]
