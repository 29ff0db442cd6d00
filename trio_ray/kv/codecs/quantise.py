"""The arithmetic of the quantising codecs, in torch. `triton_kernels` does the same on a GPU, byte for byte.

The bytes must not depend on the machine, so every step is exact or rounded the one way IEEE 754 has for it: inputs are
cleaned first (no NaN, infinity, signed zero or number that some machines flush), zero and scale are float16 numbers
found by comparing, a code is an IEEE division in float32 rounded half to even, and code * scale has at most 19
significant bits, so that a fused multiply-add gives what two operations give.

Where `bits` < 8, a byte holds the codes of several channels: with P codes a byte, byte j of a unit of U channels holds
channel p * U / P + j in its bits p * 8 / P and up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.codecs.classes import RowClass
from trio_ray.tensors import on_device

LIMIT = 65504.0
"""Largest float16 number; larger input counts as this."""
TINY = 2.0**-25
"""Smaller input counts as 0: half of the smallest float16 number."""


@dataclass(frozen=True)
class RowGroups:
    """The rows of a class in groups of up to `size`, none of which crosses a sample.

    Attributes:
        rows: the class.
        size: most rows of a group.
        starts: (G + 1,) int64, where each group begins in `rows.rows`, and its end.
    """

    rows: RowClass
    size: int
    starts: Tensor

    @classmethod
    def of(cls, rows: RowClass, size: int) -> RowGroups:
        """Cut each sample's rows into groups; the last one of a sample may be short."""
        return cls(rows, size, on_device(group_starts(rows.counts, size), rows.rows.device))

    def put_into(self, rows: NDArray[np.int64]) -> RowGroups:
        """The same, in host memory, where each row t of the segment is the row `rows[t]` of another one."""
        placed = torch.from_numpy(rows[self.rows.rows.numpy()])  # torch would set several threads to it
        return replace(self, rows=replace(self.rows, rows=placed))

    @property
    def counts(self) -> tuple[int, ...]:
        """Groups of each sample."""
        return tuple(-(-count // self.size) for count in self.rows.counts)


def group_starts(counts: Sequence[int], size: int) -> list[int]:
    """Where groups of up to `size` begin in consecutive runs of these lengths, and the end of the last."""
    ends = list(accumulate(counts, initial=0))
    return [n for start, end in pairwise(ends) for n in range(start, end, size)] + [ends[-1]]


def codes_per_byte(bits: int) -> int:
    """How many codes of this width share a byte."""
    return 8 // bits


def compress_channels(source: Tensor, groups: RowGroups, bits: int) -> tuple[Tensor, Tensor]:
    """Quantise each channel over groups of rows.

    Args:
        source: (layers, T, heads, dim).
        groups: the R rows to be coded, in G groups.
        bits: 2, 4 or 8.

    Returns:
        Codes (R, layers, heads, dim / codes_per_byte) uint8 and grids (G, layers, heads, dim) int32, see `join_grid`.
    """
    layers, _, heads, dim = source.shape
    starts, rows = groups.starts, groups.rows.rows
    codes = torch.empty((len(rows), layers, heads, dim // codes_per_byte(bits)), dtype=torch.uint8, device=rows.device)
    grids = torch.empty((len(starts) - 1, layers, heads, dim), dtype=torch.int32, device=rows.device)
    if not len(rows):
        return codes, grids
    # A short group is filled up with its own last row, which changes neither its minimum nor its maximum.
    steps = torch.arange(groups.size, device=rows.device)
    padded = torch.minimum(starts[:-1, None] + steps, starts[1:, None] - 1)
    group = _group_of_rows(starts, len(rows))
    for layer in range(layers):  # a layer at a time stays in a CPU's cache
        x = clean(source[layer].index_select(0, rows))
        members = x[padded]
        zero, scale = grid(members.amin(1), members.amax(1), bits)
        grids[:, layer] = join_grid(zero, scale)
        codes[:, layer] = pack(quantise(x, zero[group], scale[group]), bits)
    return codes, grids


def decompress_channels(codes: Tensor, grids: Tensor, groups: RowGroups, bits: int, out: Tensor) -> None:
    """Undo `compress_channels` into the groups' rows of `out`, (layers, T, heads, dim)."""
    rows = groups.rows.rows
    group = _group_of_rows(groups.starts, len(rows))
    for layer in range(out.shape[0]):
        zero, scale = split_grid(grids[:, layer])
        x = restore(unpack(codes[:, layer], bits), zero[group], scale[group])
        out[layer].index_copy_(0, rows, x.to(out.dtype))


def compress_vectors(source: Tensor, rows: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]:
    """Quantise each row in groups of channels.

    Args:
        source: (layers, T, heads, dim); `group` divides `dim`.
        rows: (R,) int64, those to be coded.
        group: channels of a head that share a grid.
        bits: 2, 4 or 8.

    Returns:
        Codes (R, layers, heads, dim / codes_per_byte) uint8 and grids (R, layers, heads, dim / group) int32.
    """
    layers, _, heads, dim = source.shape
    codes = torch.empty((len(rows), layers, heads, dim // codes_per_byte(bits)), dtype=torch.uint8, device=rows.device)
    grids = torch.empty((len(rows), layers, heads, dim // group), dtype=torch.int32, device=rows.device)
    for layer in range(layers):
        x = clean(source[layer].index_select(0, rows)).unflatten(-1, (-1, group))
        zero, scale = grid(x.amin(-1), x.amax(-1), bits)
        grids[:, layer] = join_grid(zero, scale)
        codes[:, layer] = pack(quantise(x, zero[..., None], scale[..., None]), bits).flatten(-2)
    return codes, grids


def decompress_vectors(codes: Tensor, grids: Tensor, rows: Tensor, group: int, bits: int, out: Tensor) -> None:
    """Undo `compress_vectors` into `rows` of `out`, (layers, T, heads, dim)."""
    for layer in range(out.shape[0]):
        zero, scale = split_grid(grids[:, layer])
        unit = codes[:, layer].unflatten(-1, (-1, group // codes_per_byte(bits)))
        x = restore(unpack(unit, bits), zero[..., None], scale[..., None])
        out[layer].index_copy_(0, rows, x.flatten(-2).to(out.dtype))


def clean(x: Tensor) -> Tensor:
    """As float32 within float16's range: NaN and tiny numbers become 0, infinities `LIMIT`."""
    x = x.float()
    return torch.where(x.abs() >= TINY, x, 0.0).clamp_(-LIMIT, LIMIT)


def grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Zero and scale, float16, of the grid that covers `low` to `high`: zero <= low, zero + steps * scale >= high."""
    zero = half_down(low)
    return zero, half_up((high - zero.float()) / (2**bits - 1))


def half_down(x: Tensor) -> Tensor:
    """The largest float16 number that is not above x."""
    half = x.half()
    number = half.view(torch.int16)
    below = torch.where(half > 0, number - 1, torch.where(half < 0, number + 1, -0x7FFF))
    return torch.where(half.float() > x, below, number).view(torch.float16)


def half_up(x: Tensor) -> Tensor:
    """The smallest float16 number that is not below x >= 0."""
    half = x.half()
    return torch.where(half.float() < x, half.view(torch.int16) + 1, half.view(torch.int16)).view(torch.float16)


def quantise(x: Tensor, zero: Tensor, scale: Tensor) -> Tensor:
    """Codes, uint8, of cleaned numbers on their grid."""
    step = scale.float()
    codes = torch.where(step > 0, (x - zero.float()) / step, 0.0)
    return codes.round_().to(torch.uint8)


def restore(codes: Tensor, zero: Tensor, scale: Tensor) -> Tensor:
    """The numbers, float32, that codes stand for."""
    return (zero.float() + codes.float() * scale.float()).clamp_(max=LIMIT)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(..., U) codes as (..., U / codes_per_byte) bytes."""
    per_byte = codes_per_byte(bits)
    if per_byte == 1:
        return codes
    shifts = _shifts(per_byte, codes.device)
    return (codes.unflatten(-1, (per_byte, -1)) << shifts).sum(-2, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """(..., U / codes_per_byte) bytes as (..., U) codes."""
    per_byte = codes_per_byte(bits)
    if per_byte == 1:
        return packed
    shifts = _shifts(per_byte, packed.device)
    return ((packed.unsqueeze(-2) >> shifts) & (2 ** (8 // per_byte) - 1)).flatten(-2)


def join_grid(zero: Tensor, scale: Tensor) -> Tensor:
    """float16 zero (low half) and scale (high half) as one int32."""
    return (zero.view(torch.int16).int() & 0xFFFF) | (scale.view(torch.int16).int() << 16)


def split_grid(grids: Tensor) -> tuple[Tensor, Tensor]:
    """Zero and scale of joined grids."""
    halves = grids.contiguous().view(torch.float16).unflatten(-1, (-1, 2))
    return halves[..., 0], halves[..., 1]


def _shifts(per_byte: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, 8 // per_byte, dtype=torch.uint8, device=device)[:, None]


def _group_of_rows(starts: Tensor, rows: int) -> Tensor:
    return torch.searchsorted(starts, torch.arange(rows, device=starts.device), right=True) - 1
