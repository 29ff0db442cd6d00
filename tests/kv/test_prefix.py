"""What a prefix says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kv.prefixes import FINGERPRINT, KEY, LEAD, codec_of, contained, random_prefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.restore import read_container


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


@pytest.mark.parametrize("is_first_pruned", [False, True])
def test_the_lead_is_that_of_the_unpruned_prompt_even_where_the_first_image_lost_all_its_rows(
    is_first_pruned: bool,
) -> None:
    """The text between two images is no lead of the second one, in whichever layers the first image is gone.

    A prefix keeps its lead through a batch and through a container; a schedule may prune before layer 0.
    """
    prefix = random_prefix(rows=(30, 17), layers=(1, 3))
    segments = list(prefix.segments)
    for number in (0, 1) if is_first_pruned else (1,):
        text = segments[number].text.clone()
        text[LEAD : LEAD + 2] = True
        segments[number] = replace(segments[number], text=text)
    alone = replace(prefix, segments=tuple(segments))
    batch = PrefixBatch.of([alone, prefix])
    assert [segment.leads for segment in batch.segments] == [(LEAD, LEAD)] * 2
    codec = codec_of("int8")
    back = read_container(contained(batch.split()[0], codec), codec, key=KEY, fingerprint=FINGERPRINT)
    assert PrefixBatch.of([back]).segments[0].leads == (LEAD,)
