"""The Huffman tables that a GPU's frames are coded by: of every tensor of a batch those of some batch before it.

How often a table is made anew is decided here; how it is made is in `huffman`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.lossless.huffman import MAX_DESCRIPTION, HuffmanTable
from trio_ray.tensors import to_device

Scalar = TypeVar("Scalar", bound=np.generic)

BATCHES_A_TABLE = 256
"""So many batches, at most, are coded by the tables of one, at the beginning fewer. Its bytes are waited for, and a
core works on each table for a third of a millisecond: too much to do for every batch, little enough to follow a
corpus.
"""


@dataclass(frozen=True)
class DeviceTables:
    """S Huffman tables on a device.

    Attributes:
        codes: (S, 256) int32, code and, from bit 16 on, its length.
        descriptions: (S, 128) uint8.
        described: (S,) int64, bytes of each description; 0 where there is no table.
    """

    codes: Tensor
    descriptions: Tensor
    described: Tensor


@dataclass
class _Slot:
    """Which of all tables are a tensor's, and what they are made from.

    Attributes:
        first: the number of the first.
        counted: (S,) bool, for which of them there were bytes to count.
        batches: how many the tensor has had.
    """

    first: int
    counted: NDArray[np.bool_]
    batches: int = 0

    def is_old(self, wanted: NDArray[np.bool_]) -> bool:
        """Whether the next batch is one to make tables from: a power of two, or `BATCHES_A_TABLE` once more, or one
        with runs that are `wanted`, (S,), and were not counted.
        """
        following = self.batches + 1
        is_turn = following & (following - 1) == 0 or following % BATCHES_A_TABLE == 0
        return is_turn or bool((wanted & ~self.counted).any())


class TablesInUse:
    """The Huffman tables of all tensors, one behind the other, and their copy on a device."""

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._codes = np.zeros((0, 256), np.int32)
        self._descriptions = np.zeros((0, MAX_DESCRIPTION), np.uint8)
        self._described = np.zeros(0, np.int64)
        self._on_device: DeviceTables | None = None

    @property
    def count(self) -> int:
        """Tables there are."""
        return len(self._described)

    def first_of(self, name: str, count: int) -> int:
        """The number of a tensor's first table; a new tensor gets so many, that have yet to be made."""
        if name not in self._slots:
            self._slots[name] = _Slot(self.count, np.zeros(count, np.bool_))
            self._codes = _longer(self._codes, count)
            self._descriptions = _longer(self._descriptions, count)
            self._described = _longer(self._described, count)
        return self._slots[name].first

    def old(self, wanted: Mapping[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.bool_]]:
        """Those tensors of a batch whose tables are to be made from it; `wanted` as in `_Slot.is_old`."""
        return {name: own for name, own in wanted.items() if self._slots[name].is_old(own)}

    def make(self, wanted: Mapping[str, NDArray[np.bool_]], counts: NDArray[np.int64]) -> None:
        """Make tables for bytes that occur so often, (`count`, 256). Every byte gets a code: the next batch may have
        it.
        """
        for name, own in wanted.items():
            slot = self._slots[name]
            slot.counted = own
            for number in range(slot.first, slot.first + len(own)):
                self._put(number, HuffmanTable.of(counts[number] + 1))
        self._on_device = None

    def _put(self, number: int, table: HuffmanTable | None) -> None:
        size = 0 if table is None else len(table.description)
        self._described[number] = size
        if table is not None:
            self._codes[number] = table.codes + (table.lengths.astype(np.int32) << 16)
            self._descriptions[number, :size] = np.frombuffer(table.description, np.uint8)

    def used_for(self, names: Iterable[str], device: torch.device) -> DeviceTables:
        """All tables on a device, for one more batch of these tensors."""
        for name in names:
            self._slots[name].batches += 1
        if self._on_device is None:
            arrays = (self._codes, self._descriptions, self._described)
            self._on_device = DeviceTables(*(to_device(torch.from_numpy(array), device) for array in arrays))
        return self._on_device


def _longer(table: NDArray[Scalar], rows: int) -> NDArray[Scalar]:
    """A table with so many more rows of zeros."""
    return np.concatenate([table, np.zeros((rows, *table.shape[1:]), table.dtype)])
