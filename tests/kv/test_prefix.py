"""What a prefix says of itself."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.kv.prefixes import LEAD, random_prefix
from trio_ray.kv.batch import PrefixBatch


def test_bytes_count_keys_and_values_of_every_layer() -> None:
    prefix = random_prefix(torch.bfloat16, rows=(30, 17), layers=(1, 3), kv_heads=2, head_dim=8)
    assert prefix.kv_bytes == 2 * 2 * (30 * 1 + 17 * 3) * 2 * 8


def test_the_first_token_is_the_best_entry() -> None:
    assert random_prefix().first_token == 7


def test_a_segment_knows_its_layers_and_rows() -> None:
    assert [(segment.layers, segment.rows) for segment in random_prefix().segments] == [(1, 30), (2, 17), (3, 9)]


def test_a_prefix_says_what_it_is() -> None:
    shown = repr(random_prefix(torch.bfloat16, rows=(30, 17), layers=(1, 3)))
    assert "4 layers hold 17 to 30; bfloat16 on cpu" in shown


def test_the_lead_of_a_batch_is_that_of_the_unpruned_prompt_even_where_the_first_image_lost_all_its_rows() -> None:
    """The text between two images is no lead of the second one."""
    prefix = random_prefix(rows=(30, 17), layers=(1, 3))
    first, pruned = prefix.segments
    text = pruned.text.clone()
    text[LEAD : LEAD + 2] = True
    alone = replace(prefix, segments=(first, replace(pruned, text=text)))
    assert [segment.leads for segment in PrefixBatch.of([alone, prefix]).segments] == [(LEAD, LEAD)] * 2
