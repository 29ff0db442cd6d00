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


def test_kept_rows_stay_where_they_were_if_they_are_not_renumbered(rows: PackedRows) -> None:
    once = rows.keep(torch.tensor([0, 1, 3, 5, 7, 8, 10, 11, 12, 13, 16, 17]), (1, 0, 0, 2), "original")
    assert once.position.tolist() == [0, 1, 3, 5, 7, 8, 0, 1, 2, 0, 3, 4]
    twice = once.keep(torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 10, 11]), (0, 0, 0, 1), "original")
    assert twice.position.tolist() == [0, 1, 5, 7, 8, 0, 1, 2, 3, 4]
    assert once.ends == twice.ends == rows.ends
    assert once.image_index.tolist() == [-1, -1, 1, -1, -1, -1, -1, -1, -1, 0, 3, -1]


def test_renumbered_rows_carry_the_given_numbers_through_a_prune(rows: PackedRows) -> None:
    other = rows.renumbered(torch.tensor([5, 70, 71, 90, 3, 0, 8, 9, 1000]))
    assert other.image_index.tolist() == [-1, -1, 5, 70, 71, -1, 90, -1, -1, 3, -1, -1, -1, 0, 8, 9, 1000, -1]
    assert (other.lengths, other.image_counts, other.tails) == (rows.lengths, rows.image_counts, rows.tails)
    assert torch.equal(other.position, rows.position)
    kept = other.keep(torch.tensor([0, 1, 3, 5, 7, 8, 10, 11, 12, 13, 16, 17]), (1, 0, 0, 2))
    assert kept.image_index[kept.image_rows].tolist() == [70, 0, 1000]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=5))
def test_padded_views_hold_each_samples_rows_and_nothing_else(masks: list[list[bool]]) -> None:
    rows = PackedRows.pack([torch.tensor(mask) for mask in masks], "cpu")
    slots, real = rows.padded
    images, image_real = rows.padded_images
    texts, text_real = rows.padded_texts
    longest = max(map(len, masks))
    assert slots.shape == (len(masks), -(-longest // 8) * 8)  # matrix products want aligned rows
    assert images.shape == (len(masks), -(-max(map(sum, masks)) // 8) * 8)
    assert texts.shape == (len(masks), max(mask.count(False) for mask in masks))
    for sample, mask in enumerate(masks):
        start = rows.offsets[sample]
        assert slots[sample][real[sample]].tolist() == list(range(start, start + len(mask)))
        assert images[sample][image_real[sample]].tolist() == [start + at for at, image in enumerate(mask) if image]
        assert texts[sample][text_real[sample]].tolist() == [start + at for at, image in enumerate(mask) if not image]
    assert bool(((texts >= 0) & (texts < rows.total)).all())
    assert bool(((slots >= 0) & (slots < rows.total)).all())
    assert bool(((images >= 0) & (images < rows.total)).all())


@given(st.lists(st.booleans(), max_size=40))
def test_select_rows_equals_nonzero(mask: list[bool]) -> None:
    tensor = torch.tensor(mask, dtype=torch.bool)
    assert select_rows(tensor, sum(mask)).tolist() == tensor.nonzero()[:, 0].tolist()
