"""Small integers packed by how large they get, so that what zstd sees is alike and no symbol costs it a whole bit.

Components are sorted from wide to narrow; each of four consecutive bands has its own packing:

- `wide`: two bytes an integer, lowest bytes first, up to 32,767 either way;
- `byte`: one byte, up to 127;
- `nibble`: two to a byte, up to 7;
- `trit`: five to a byte, -1, 0 or 1.

What is larger than its band takes is stored as the band's largest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Band:
    """A packing: `per_byte` symbols of up to `limit` either way; where `per_byte` is 0, two bytes for each symbol."""

    name: str
    limit: int
    per_byte: int

    @property
    def base(self) -> int:
        """Number of values that a symbol can have."""
        return 2 * self.limit + 1

    def width(self, components: int) -> int:
        """Bytes a row."""
        return -(-components // self.per_byte) if self.per_byte else 2 * components


BANDS = (Band("wide", 32767, 0), Band("byte", 127, 1), Band("nibble", 7, 2), Band("trit", 1, 5))


ZERO = 128
"""The byte that stands for 0 where symbols of either sign are multiplied as bytes without one."""


@dataclass(frozen=True)
class PackedPlaces:
    """Where the packed symbols of n rows and of one group are stored; other groups' lie beside them.

    Attributes:
        stored: flat uint8, room for all.
        rows: (n, bands) int64, where in it each row begins in each band.
        columns: how many bytes of each band other groups come first with.
    """

    stored: Tensor
    rows: Tensor
    columns: tuple[int, ...]

    def put(self, packed: Sequence[Tensor]) -> None:
        """Store by band (n, bytes) uint8, as `pack` gives them."""
        for number, (band, column) in enumerate(zip(packed, self.columns, strict=True)):
            bytes_of_row = torch.arange(column, column + band.shape[1], device=band.device)
            self.stored[self.rows[:, number, None] + bytes_of_row] = band


def pack(symbols: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """(n, components) integers -> by band (n, `Band.width`) uint8. `counts`: components of each band."""
    return [_pack(part, band) for part, band in zip(symbols.split(list(counts), 1), BANDS, strict=True)]


def unpack_wide(packed: Tensor) -> Tensor:
    """Undo `pack` in the first band: (n, components) fp32."""
    low, high = packed.float().chunk(2, 1)
    return torch.add(low, high, alpha=256).sub_(BANDS[0].limit + 1)


def unpack_narrow(packed: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Undo `pack` in the other bands: (n, components) uint8, side by side, each `ZERO` above its symbol.

    Any byte stands for some symbols; 255 in the band of whole bytes, which `pack` never writes, for -128.
    """
    symbols = torch.empty((len(packed[0]), sum(counts)), dtype=torch.uint8, device=packed[0].device)
    for part, out, band in zip(packed, symbols.split(list(counts), 1), BANDS[1:], strict=True):
        if band.per_byte == 1:
            torch.add(part, ZERO - band.limit, out=out)
        elif out.numel():
            out.copy_(_symbols_of_bytes(band, part)[:, : out.shape[1]])
    return symbols


def narrow_digits(packed: Sequence[Tensor]) -> list[NDArray[np.uint8]]:
    """What `pack` gives in the other bands as a CPU multiplies it fastest: place by place, without arranging anything.

    Args:
        packed: of the bands `byte`, `nibble` and `trit`, (n, bytes) uint8 in host memory.

    Returns:
        `digit_places` arrays (n, bytes of a band), each number `Band.limit` above its symbol. A byte that `pack` never
        writes stands for symbols that are somewhat larger than their band's.
    """
    digits = []
    for part, band in zip(packed, BANDS[1:], strict=True):
        rest = part.numpy()
        for _ in range(band.per_byte - 1):
            above = rest // np.uint8(band.base)  # numpy divides bytes by a constant without a division
            digits.append(rest - above * np.uint8(band.base))
            rest = above
        digits.append(rest)
    return digits


def digit_places(counts: Sequence[int]) -> list[tuple[range, int]]:
    """For each array of `narrow_digits` the components that it holds, as their numbers, and its bytes of a row.

    Args:
        counts: components of the bands `byte`, `nibble` and `trit`; numbers begin with 0 at the first of `byte`.
    """
    ends = list(accumulate(counts, initial=0))
    return [
        (range(start + place, stop, band.per_byte), band.width(stop - start))
        for (start, stop), band in zip(pairwise(ends), BANDS[1:], strict=True)
        for place in range(band.per_byte)
    ]


def _pack(symbols: Tensor, band: Band) -> Tensor:
    symbols = symbols.clamp(-band.limit, band.limit)
    if not band.per_byte:
        unsigned = symbols + (band.limit + 1)
        return torch.cat([(unsigned & 255).to(torch.uint8), (unsigned >> 8).to(torch.uint8)], 1)
    digits = symbols + band.limit
    if band.per_byte > 1:
        padded = F.pad(digits, (0, -symbols.shape[1] % band.per_byte), value=band.limit)
        places = _places(band, symbols.device)
        digits = (padded.unflatten(1, (-1, band.per_byte)) * places).sum(2, dtype=symbols.dtype)
    return digits.to(torch.uint8)


def _symbols_of_bytes(band: Band, packed: Tensor) -> Tensor:
    """(n, bytes) uint8 -> (n, bytes * per_byte) uint8, looked up: a division of integers costs a CPU far more."""
    index = packed.reshape(-1).int()
    return _table(band, packed.device).index_select(0, index).view(torch.uint8).view(len(packed), -1)


@functools.cache
def _table(band: Band, device: torch.device) -> Tensor:
    """What `unpack_narrow` makes of each byte: (256, per_byte) uint8, or (256,) int16 that are two of them."""
    digits = torch.arange(256, dtype=torch.int16)[:, None] // _places(band, torch.device("cpu")) % band.base
    table = (digits - band.limit + ZERO).to(torch.uint8)
    return (table.view(torch.int16)[:, 0] if band.per_byte == 2 else table).to(device)


@functools.cache
def _places(band: Band, device: torch.device) -> Tensor:
    """(per_byte,) int16, what a symbol in each place of a byte counts. Moved once: a copy to a GPU costs more than its
    use.
    """
    return torch.tensor([band.base**place for place in range(band.per_byte)], dtype=torch.int16).to(device)
