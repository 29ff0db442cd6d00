"""Packed rows: positions, what is kept, and the padded views that batched stages use."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trio_ray.method.rows import PackedRows, select_rows


def mask_of(text: str) -> Tensor:
    """'..##.' -> which rows are image rows."""
    return torch.tensor([letter == "#" for letter in text])


@pytest.fixture
def rows() -> PackedRows:
    return PackedRows.pack([mask_of("..###.#.."), mask_of("#"), mask_of("..."), mask_of("####.")], "cpu")


def test_whole_prompts_are_laid_out_one_after_the_other(rows: PackedRows) -> None:
    assert rows.lengths == rows.ends == (9, 1, 3, 5)
    assert rows.image_counts == (4, 1, 0, 4)
    assert rows.tails == (2, 0, 3, 1)
    assert rows.offsets == (0, 9, 10, 13, 18)
    assert rows.total == 18
    assert rows.cu_seqlens.tolist() == [0, 9, 10, 13, 18]
    assert rows.cu_seqlens.dtype == torch.int32
    assert rows.sample.tolist() == [0] * 9 + [1] + [2] * 3 + [3] * 5
    assert rows.position.tolist() == [*range(9), 0, *range(3), *range(5)]
    assert rows.image_index.tolist() == [-1, -1, 0, 1, 2, -1, 3, -1, -1, 0, -1, -1, -1, 0, 1, 2, 3, -1]
    assert rows.image_rows.tolist() == [2, 3, 4, 6, 9, 13, 14, 15, 16]


def test_kept_rows_close_up_behind_the_last_one(rows: PackedRows) -> None:
    kept = rows.keep(torch.tensor([0, 1, 3, 5, 7, 8, 10, 11, 12, 13, 16, 17]), (1, 0, 0, 2))
    assert kept.lengths == (6, 0, 3, 3)
    assert kept.image_counts == (1, 0, 0, 2)
    assert kept.ends == (9, 1, 3, 5)
    assert kept.tails == rows.tails
    assert kept.position.tolist() == [*range(3, 9), *range(3), *range(2, 5)]
    assert kept.image_index.tolist() == [-1, -1, 1, -1, -1, -1, -1, -1, -1, 0, 3, -1]


def test_indices_stay_those_of_the_original_tokens_after_several_prunes(rows: PackedRows) -> None:
    once = rows.keep(torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 17]), (3, 1, 0, 2))
    twice = once.keep(torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14]), (2, 1, 0, 1))
    assert twice.image_index[twice.image_rows].tolist() == [2, 3, 0, 3]
    assert twice.position.tolist() == [*range(2, 9), 0, *range(3), *range(3, 5)]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=5))
def test_padded_views_hold_each_samples_rows_and_nothing_else(masks: list[list[bool]]) -> None:
    rows = PackedRows.pack([torch.tensor(mask) for mask in masks], "cpu")
    slots, real = rows.padded
    images, image_real = rows.padded_images
    assert slots.shape == (len(masks), max(map(len, masks)))
    assert images.shape == (len(masks), max(map(sum, masks)))
    for sample, mask in enumerate(masks):
        start = rows.offsets[sample]
        assert slots[sample][real[sample]].tolist() == list(range(start, start + len(mask)))
        assert images[sample][image_real[sample]].tolist() == [start + at for at, image in enumerate(mask) if image]
    assert bool(((slots >= 0) & (slots < rows.total)).all())
    assert bool(((images >= 0) & (images < rows.total)).all())


@given(st.lists(st.booleans(), max_size=40))
def test_select_rows_equals_nonzero(mask: list[bool]) -> None:
    tensor = torch.tensor(mask, dtype=torch.bool)
    assert select_rows(tensor, sum(mask)).tolist() == tensor.nonzero()[:, 0].tolist()
