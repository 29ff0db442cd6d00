"""How symbols are packed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from trio_ray.kv.codecs.transform_bands import (
    BANDS,
    ZERO,
    PackedPlaces,
    digit_places,
    narrow_digits,
    pack,
    unpack_narrow,
    unpack_wide,
)


def unpack(packed: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    return torch.cat([unpack_wide(packed[0]), unpack_narrow(packed[1:], counts[1:]).float() - ZERO], 1)


@pytest.mark.parametrize("counts", [(2, 3, 5, 11), (0, 0, 0, 1), (1, 0, 1, 0), (0, 4, 2, 5), (0, 0, 0, 0)])
def test_symbols_within_their_bands_come_back(counts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randint(-band.limit, band.limit + 1, (400, count), generator=generator)
        for band, count in zip(BANDS, counts, strict=True)
    ]
    for part, band in zip(parts, BANDS, strict=True):
        part[:2] = torch.tensor([[-band.limit], [band.limit]])
    symbols = torch.cat(parts, 1)
    packed = pack(symbols, counts)
    assert [tuple(x.shape) for x in packed] == [(400, b.width(c)) for b, c in zip(BANDS, counts, strict=True)]
    assert torch.equal(unpack(packed, counts).long(), symbols)


@pytest.mark.parametrize("counts", [(2, 3, 5, 11), (0, 0, 0, 1), (1, 0, 1, 0), (0, 4, 2, 5), (0, 0, 0, 0)])
def test_digits_are_the_symbols_place_by_place(counts: tuple[int, ...]) -> None:
    """For every byte that packing writes, side by side in the order that `digit_places` says."""
    bands = zip(BANDS[1:], counts[1:], strict=True)
    parts = [torch.randint(-band.limit, band.limit + 1, (400, count)) for band, count in bands]
    symbols, packed = (
        torch.cat(parts, 1),
        pack(torch.cat([torch.zeros(400, counts[0], dtype=torch.int64), *parts], 1), counts),
    )
    limits = [band.limit for band in BANDS[1:] for _ in range(band.per_byte)]
    found = zip(narrow_digits(packed[1:]), digit_places(counts[1:]), limits, strict=True)
    seen = []
    for digits, (numbers, width), limit in found:
        assert digits.shape == (400, width)
        own = torch.from_numpy(digits[:, : len(numbers)].astype("int64")) - limit
        assert torch.equal(own, symbols[:, list(numbers)])
        seen += numbers
    assert sorted(seen) == list(range(sum(counts[1:])))


def test_a_byte_holds_two_nibbles_or_five_trits() -> None:
    assert [band.width(10) for band in BANDS] == [20, 10, 5, 2]


def test_a_symbol_too_large_for_its_band_becomes_the_largest_and_harms_no_other() -> None:
    counts = (1, 1, 2, 5)
    symbols = torch.tensor([[10**6, -500, 9, -3, 2, 0, -2, 1, 5], [-(10**6), 500, -9, 3, -2, 0, 2, -1, -5]])
    assert unpack(pack(symbols, counts), counts).tolist() == [
        [32767, -127, 7, -3, 1, 0, -1, 1, 1],
        [-32767, 127, -7, 3, -1, 0, 1, -1, -1],
    ]


def test_packed_rows_are_stored_at_their_places_and_nothing_else_is_touched() -> None:
    packed = [torch.tensor([[1], [2]]), torch.tensor([[3, 4], [5, 6]]), torch.zeros(2, 0), torch.tensor([[7], [8]])]
    places = PackedPlaces(
        stored=torch.zeros(14, dtype=torch.uint8),
        rows=torch.tensor([[0, 2, 9, 9], [1, 5, 9, 11]]),
        columns=(0, 1, 0, 2),
    )
    places.put([band.to(torch.uint8) for band in packed])
    assert places.stored.tolist() == [1, 2, 0, 3, 4, 0, 5, 6, 0, 0, 0, 7, 0, 8]


def test_every_byte_means_symbols_within_reach() -> None:
    """A damaged byte is another state, never an index out of range."""
    counts = (0, 1, 2, 5)
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    found = unpack([every[:, :0], every, every, every], counts)
    assert int(found.min()) >= -128
    assert int(found.max()) <= 128
