"""Many tensors reach a device as they were, whatever their dtypes and sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch

from trio_ray.tensors import in_fitting_parts, mark, milliseconds_between, move_joined, move_together, torch_threads


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_runs_arrive_joined_and_as_they_were(device: str) -> None:
    runs = [
        [torch.arange(3, dtype=torch.int64), torch.arange(7)],
        [torch.tensor([True, False, True])],
        [torch.randn(2, 3, 5).bfloat16(), torch.randn(0, 3, 5).bfloat16(), torch.randn(1, 3, 5).bfloat16()],
        [torch.empty(0, 4, dtype=torch.int32)],
        [torch.randn(6, 4).half()[:, 1:3], torch.randn(1, 2).half()],
        [torch.arange(9, dtype=torch.uint8)],
    ]
    for ours, run in zip(move_joined(runs, torch.device(device)), runs, strict=True):
        assert ours.device.type == device
        assert torch.equal(ours.cpu(), torch.cat(run))
    alone = [run[0] for run in runs]
    for ours, tensor in zip(move_together(alone, torch.device(device)), alone, strict=True):
        assert torch.equal(ours.cpu(), tensor)


def test_nothing_to_move_is_nothing() -> None:
    assert move_joined([], torch.device("cpu")) == []


def test_torch_has_its_threads_back_also_where_the_work_fails() -> None:
    before = torch.get_num_threads()
    with pytest.raises(OSError), torch_threads(before + 1):  # noqa: PT011, PT012
        assert torch.get_num_threads() == before + 1
        raise OSError
    assert torch.get_num_threads() == before


def test_work_that_the_memory_is_too_small_for_is_done_in_halves() -> None:
    """Two items fit at once, but one that is too large does not fit alone; the order stays."""
    halved = []

    def work(items: Sequence[int]) -> int:
        if len(items) > 2 or max(items) > 6:
            raise torch.OutOfMemoryError
        return sum(items)

    done = in_fitting_parts(torch.device("cpu"), range(1, 8), work, lambda: halved.append(1))
    assert [(list(items), total) for items, total in done] == [
        ([1], 1),
        ([2, 3], 5),
        ([4, 5], 9),
        ([6], 6),
        ([7], None),
    ]
    assert len(halved) == 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_time_between_two_marks_is_that_of_the_work(device: str) -> None:
    start = mark(torch.device(device))
    time.sleep(0.02)
    torch.ones(3, device=device).sum()
    assert 19 < milliseconds_between(start, mark(torch.device(device))) < 5000
