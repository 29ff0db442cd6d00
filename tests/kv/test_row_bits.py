"""Rows, kept tokens and likely first tokens of many prefixes, as bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trio_ray.kv.row_bits import RowCounts, RowFields, pack_rows, unpack_rows

LENGTHS = (30, 17, 8, 1)
"""Of the prompts: not all of them fill whole bytes."""


def made(length: int, seed: int) -> tuple[RowCounts, list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:
    """Random fields of a prefix with two segments and a prune point, and their counts."""
    random = torch.Generator().manual_seed(seed)

    def some(end: int, least: int) -> Tensor:
        return torch.randperm(end, generator=random)[: max(least, end // 2)].sort().values.int()

    positions = [torch.arange(length, dtype=torch.int32), some(length, 1)]
    texts = [torch.rand(len(own), generator=random) < 0.4 for own in positions]
    kept = [some(length, 1)]
    top = torch.randint(0, 1 << 20, (seed % 3,), generator=random, dtype=torch.int32)
    counts = RowCounts(
        length=length,
        rows=tuple(map(len, positions)),
        texts=tuple(int(own.sum()) for own in texts),
        kept=(len(kept[0]),),
        kept_end=int(kept[0][-1]) + 1,
        top_k=len(top),
    )
    return counts, positions, texts, kept, top, torch.rand(len(top), generator=random)


def packed(length: int, seed: int) -> np.ndarray:
    return pack_rows(length, *made(length, seed)[1:]).numpy()


def assert_fields(found: RowFields | None, length: int, seed: int) -> None:
    _, positions, texts, kept, top, logprobs = made(length, seed)
    assert found is not None
    assert found.position.tolist() == torch.cat(positions).tolist()
    assert found.text.tolist() == torch.cat(texts).tolist()
    assert [own.tolist() for own in found.kept] == [own.tolist() for own in kept]
    assert found.top_ids.tolist() == top.tolist()
    assert torch.equal(found.top_logprobs, logprobs)
    assert (found.position.dtype, found.kept[0].dtype, found.top_ids.dtype) == (np.int32, torch.int32, torch.int32)


def test_what_many_prefixes_hold_comes_back() -> None:
    counts = [made(length, seed)[0] for seed, length in enumerate(LENGTHS)]
    data = [packed(length, seed) for seed, length in enumerate(LENGTHS)]
    assert [len(own) for own in data] == [one.size for one in counts]
    for seed, (found, length) in enumerate(zip(unpack_rows(data, counts), LENGTHS, strict=True)):
        assert_fields(found, length, seed)
    assert unpack_rows([], []) == []


@pytest.mark.parametrize("victim", range(len(LENGTHS)))
def test_a_bit_too_many_or_too_few_anywhere_spoils_its_prefix_alone(victim: int) -> None:
    """Bits that fill a byte up are none of the prefix's either."""
    counts = [made(length, seed)[0] for seed, length in enumerate(LENGTHS)]
    for bit in range(8 * counts[victim].bits_size):
        data = [packed(length, seed) for seed, length in enumerate(LENGTHS)]
        data[victim][bit // 8] ^= 1 << bit % 8
        for seed, (found, length) in enumerate(zip(unpack_rows(data, counts), LENGTHS, strict=True)):
            if seed == victim:
                assert found is None, bit
            else:
                assert_fields(found, length, seed)
