"""Kept image rows weigh as much in attention as all rows that they stand for, and nothing else changes."""

from __future__ import annotations

from math import log

import pytest
import torch

from trio_ray.method.representation import mean_tail_queries, represent_dropped
from trio_ray.method.rows import PackedRows

HEADS, KV_HEADS, DIM, SCALE = 6, 2, 16, 0.25
IMAGE_TOKENS = (40, 7, 0, 12)


def layout() -> PackedRows:
    """Text, an image and text; one sample without an image, and one that ends with its image."""
    tails = (5, 3, 0, 0)
    masks = [
        torch.cat([torch.zeros(4), torch.ones(tokens), torch.zeros(tail)]).bool()
        for tokens, tail in zip(IMAGE_TOKENS, tails, strict=True)
    ]
    return PackedRows.pack(masks, "cpu")


def kept_of(rows: PackedRows, counts: tuple[int, ...]) -> tuple[torch.Tensor, PackedRows]:
    """The rows that stay where each sample keeps its first image tokens, and their layout."""
    stays = ~rows.is_image | (rows.image_index < torch.tensor(counts)[rows.sample])
    (places,) = stays.nonzero(as_tuple=True)
    return places, rows.keep(places, counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kept_row_weighs_as_much_as_the_rows_that_it_stands_for(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = layout()
    counts = (8, 7, 0, 3)
    places, left = kept_of(rows, counts)
    queries = mean_tail_queries(torch.randn(rows.total, HEADS, DIM, dtype=dtype) + 0.3, rows, KV_HEADS)
    before = torch.randn(len(places), KV_HEADS, DIM, dtype=dtype)
    keys = before.clone()
    represent_dropped(keys, left, IMAGE_TOKENS, queries, SCALE)
    moved = keys.float() - before.float()
    assert torch.equal(keys[~left.is_image], before[~left.is_image])
    products = SCALE * (moved * queries[left.sample]).sum(-1)
    for sample, (tokens, kept) in enumerate(zip(IMAGE_TOKENS, counts, strict=True)):
        own = products[(left.sample == sample) & left.is_image]
        # Without rows behind the image nothing is known of who will ask.
        wanted = log(tokens / kept) if kept and rows.tails[sample] else 0.0
        tolerance = 1e-5 if dtype is torch.float32 else 0.1
        torch.testing.assert_close(own, torch.full_like(own, wanted), atol=tolerance, rtol=0)


def test_the_mean_query_is_of_the_rows_behind_the_image_and_the_heads_that_share_keys() -> None:
    torch.manual_seed(0)
    rows = layout()
    query = torch.randn(rows.total, HEADS, DIM)
    found = mean_tail_queries(query, rows, KV_HEADS)
    start = rows.offsets[0]
    tail = query[start + 44 : start + 49]
    torch.testing.assert_close(found[0, 0], tail[:, :3].mean((0, 1)))
    torch.testing.assert_close(found[0, 1], tail[:, 3:].mean((0, 1)))
    assert found[3].eq(0).all(), "an image that ends a prompt has no rows behind it"
