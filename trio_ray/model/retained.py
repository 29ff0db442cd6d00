"""The input embeddings that a pruned prefill retains, taken before any layer has run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from trio_ray.kv.embeds import EmbedsBatch
from trio_ray.method.rows import PackedRows, select_rows
from trio_ray.tensors import on_device, to_device


def retained_embeds(
    hidden: Tensor, token_ids: Tensor, rows: PackedRows, left: PackedRows, tails: tuple[int, ...]
) -> EmbedsBatch:
    """The text rows' embeddings, and those of the image rows that are left behind the first prune point.

    Nothing waits for the device.

    Args:
        hidden: (T, d) input embeddings of whole prompts.
        token_ids: (T,) int32, one for each row.
        rows: their layout.
        left: the layout behind the first prune point.
        tails: text rows at each prompt's end that are not wanted.
    """
    numbers = torch.arange(rows.total, device=rows.device)
    if left.total < rows.total:
        numbers = _still_there(rows, left)
    spans = zip(pairwise(left.offsets), tails, strict=True)
    wanted = torch.cat([torch.arange(start, stop - tail) for (start, stop), tail in spans])
    numbers = numbers[to_device(wanted, rows.device)]
    starts = on_device(rows.offsets[:-1], rows.device)
    return EmbedsBatch(
        lengths=tuple(end - tail for end, tail in zip(rows.ends, tails, strict=True)),
        counts=tuple(length - tail for length, tail in zip(left.lengths, tails, strict=True)),
        rows=hidden[numbers],
        token_ids=token_ids[numbers],
        position=(numbers - starts[rows.sample[numbers]]).int(),
        text=~rows.is_image[numbers],
    )


def row_token_ids(prompts: Sequence[Sequence[int]], image_token_id: int, rows: PackedRows) -> Tensor:
    """(T,) int32, the token id of each row of unpruned prompts. Nothing waits for the device.

    Args:
        prompts: the prompts' ids, each image as one id.
        image_token_id: that id, which every image row has.
        rows: their layout.
    """
    text = [token for prompt in prompts for token in prompt if token != image_token_id]
    ids = to_device(torch.tensor([image_token_id, *text], dtype=torch.int32), rows.device)
    return ids[(~rows.is_image).cumsum(0).masked_fill(rows.is_image, 0)]


def _still_there(rows: PackedRows, left: PackedRows) -> Tensor:
    """(T',) int64, the numbers among `rows` of those in `left`; `rows` are unpruned."""
    starts = list(accumulate(rows.image_counts, initial=0))[:-1]
    kept = left.image_index[left.image_rows]
    first = on_device(starts, rows.device)[left.sample[left.image_rows]]
    stays = (~rows.is_image).index_fill(0, rows.image_rows[first + kept], True)
    return select_rows(stays, left.total)
