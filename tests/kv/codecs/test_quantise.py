"""The quantising arithmetic: no element moves by more than half a step, whatever the input, and codes are portable."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from trio_ray.kv.codecs.classes import RowClass
from trio_ray.kv.codecs.quantise import (
    LIMIT,
    RowGroups,
    clean,
    compress_channels,
    compress_vectors,
    decompress_channels,
    decompress_vectors,
    group_starts,
    half_down,
    half_up,
    pack,
    split_grid,
    unpack,
)

BITS = range(2, 9)
FLOATS = arrays(np.float32, (2, 20, 1, 8), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


def groups_of(rows: Tensor, counts: tuple[int, ...], size: int) -> RowGroups:
    return RowGroups.of(RowClass(rows, counts), size)


@settings(max_examples=60, deadline=None)
@given(FLOATS, st.sampled_from(BITS))
def test_vectors_come_back_within_half_a_step(numbers: np.ndarray, bits: int) -> None:
    source, rows = torch.from_numpy(numbers), torch.arange(1, 20, 2)
    codes, grids = compress_vectors(source, rows, 4, bits)
    out = torch.zeros_like(source)
    decompress_vectors(codes, grids, rows, 4, bits, out)
    step = split_grid(grids)[1].float().transpose(0, 1)[..., None]
    assert_within(out[:, rows].unflatten(-1, (-1, 4)), source[:, rows].unflatten(-1, (-1, 4)), step / 2)
    assert not out[:, ::2].any()


@settings(max_examples=60, deadline=None)
@given(FLOATS, st.sampled_from(BITS))
def test_channels_come_back_within_half_a_step(numbers: np.ndarray, bits: int) -> None:
    source, rows = torch.from_numpy(numbers), torch.arange(19)
    groups = groups_of(rows, (11, 0, 8), 4)
    codes, grids = compress_channels(source, groups, bits)
    out = torch.zeros_like(source)
    decompress_channels(codes, grids, groups, bits, out)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
    step = split_grid(grids)[1].float()[group].transpose(0, 1)
    assert_within(out[:, :19], source[:, :19], step / 2)
    assert not out[:, 19].any()


def assert_within(ours: Tensor, source: Tensor, bound: Tensor) -> None:
    assert ours.isfinite().all()
    # float32 itself rounds the sum of zero and code * scale; the grid's ends are float16.
    slack = source.nan_to_num(0, LIMIT, -LIMIT).abs().clamp(max=LIMIT) * 2**-22
    assert ((ours - clean(source)).abs() <= bound + slack).all()


def test_what_is_no_number_is_cleaned_before_it_can_differ_between_machines() -> None:
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-40, -1e-8, 70000.0, 2.0**-25])
    clean_bits = clean(odd).view(torch.int32).tolist()
    wanted = torch.tensor([0.0, LIMIT, -LIMIT, 0.0, 0.0, 0.0, LIMIT, 2.0**-25]).view(torch.int32).tolist()
    assert clean_bits == wanted


@settings(max_examples=200, deadline=None)
@given(st.floats(-LIMIT, LIMIT, width=32))
def test_half_down_and_half_up_are_the_next_float16(number: float) -> None:
    x = clean(torch.tensor([number]))
    down, up = half_down(x), half_up(x.abs())
    assert down.float() <= x
    assert torch.nextafter(down, torch.tensor(math.inf, dtype=torch.float16)).float() > x
    assert up.float() >= x.abs()
    assert not up.any() or torch.nextafter(up, torch.zeros_like(up)).float() < x.abs()


@pytest.mark.parametrize("bits", BITS)
def test_packing_comes_back_and_puts_codes_where_the_format_says(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 16), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits), codes)
    per_byte = 16 // packed.shape[-1]
    width = packed.shape[-1]
    for part in range(per_byte):
        room = 8 // per_byte
        assert torch.equal((packed >> (part * room)) & (2**room - 1), codes[:, part * width : (part + 1) * width])


def test_no_group_crosses_a_sample() -> None:
    assert group_starts((5, 0, 4, 1), 4) == [0, 4, 5, 9, 10]
    assert groups_of(torch.arange(10), (5, 0, 4, 1), 4).counts == (2, 0, 1, 1)


def test_constant_channels_come_back_exactly_and_take_no_step() -> None:
    source = torch.full((1, 6, 1, 4), 2.5)
    groups = groups_of(torch.arange(6), (6,), 32)
    codes, grids = compress_channels(source, groups, 4)
    assert not codes.any()
    out = torch.zeros_like(source)
    decompress_channels(codes, grids, groups, 4, out)
    assert torch.equal(out, source)


def test_float16_never_overflows_on_the_way_back() -> None:
    source = torch.linspace(-LIMIT, LIMIT, 32).view(1, 1, 1, 32).half()
    for bits in BITS:
        out = torch.zeros_like(source)
        rows = torch.zeros(1, dtype=torch.int64)
        decompress_vectors(*compress_vectors(source, rows, 32, bits), rows, 32, bits, out)
        assert out.isfinite().all()
        assert out.max() == LIMIT
