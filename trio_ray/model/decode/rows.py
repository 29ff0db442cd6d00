"""Which rows a pass over the decoder adds, and where the rows of their sequences are in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.model.decode.pool import IDLE_ROW
from trio_ray.tensors import ALIGNMENT, move_together, on_device

_ALIGNED_SLOTS = ALIGNMENT // torch.int32.itemsize


@dataclass(frozen=True)
class NewRows:
    """T new rows, the sequences one behind the other.

    Attributes:
        slot: (T,) int32, each row's sequence: its column in the `SlotTable`.
        number: (T,) int32, each row's number among the new rows of its sequence.
        tile_row, tile_rows: (tiles,) int32, the first row of each tile and how many it has. A tile holds rows of one
            sequence that attend together, at most `tile_size`.
        tile_size: most rows of a tile.
    """

    slot: Tensor
    number: Tensor
    tile_row: Tensor
    tile_rows: Tensor
    tile_size: int

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return len(self.tile_row)

    @classmethod
    def one_each(cls, slot: Tensor) -> NewRows:
        """One new row for each sequence, (B,) int32: a decode step."""
        number = torch.zeros_like(slot)
        rows = torch.arange(len(slot), dtype=torch.int32, device=slot.device)
        return cls(slot, number, rows, torch.ones_like(slot), 1)

    @classmethod
    def of_counts(cls, slots: Sequence[int], counts: Sequence[int], tile_size: int, device: torch.device) -> NewRows:
        """`counts[i]` new rows for the sequence in slot `slots[i]`."""
        slot: list[int] = []
        number: list[int] = []
        tile_row: list[int] = []
        tile_rows: list[int] = []
        for own, count in zip(slots, counts, strict=True):
            for begin in range(0, count, tile_size):
                tile_row.append(len(slot) + begin)
                tile_rows.append(min(tile_size, count - begin))
            slot += [own] * count
            number += range(count)
        each = [torch.tensor(values, dtype=torch.int32) for values in (slot, number, tile_row, tile_rows)]
        rows = move_together(each, device)
        return cls(rows[0], rows[1], rows[2], rows[3], tile_size)


@dataclass(frozen=True)
class RunExtents:
    """Where the sequences' rows are in one run of layers, by slot, (slots,) int32 each: the prefix has `prefix_rows`
    rows from `prefix_start` on, and the tokens appended so far have `own_rows` rows from `own_start` on.
    """

    prefix_start: Tensor
    prefix_rows: Tensor
    own_start: Tensor
    own_rows: Tensor


@dataclass(frozen=True)
class SlotState:
    """What the device knows of one sequence.

    Attributes:
        prefix_starts, prefix_rows: its prefix in each run of layers.
        own_starts: its room for appended tokens in each run.
        own_rows: how many tokens are appended.
        length: rows of the unpruned prompt: the position of the first appended token.
        token: the token to read next.
    """

    prefix_starts: Sequence[int]
    prefix_rows: Sequence[int]
    own_starts: Sequence[int]
    own_rows: int
    length: int
    token: int = 0


class SlotTable:
    """The sequences that decode, on the device: column s belongs to the sequence in slot s.

    One further column, `idle`, is nobody's: the padding of a batch reads and writes the pool's idle row.
    """

    def __init__(self, runs: int, slots: int, device: torch.device) -> None:
        self.idle = slots
        self._device = device
        width = -(-(slots + 1) // _ALIGNED_SLOTS) * _ALIGNED_SLOTS
        self._state = torch.zeros((3 * runs + 3, width), dtype=torch.int32, device=device)
        self._state[2 * runs : 3 * runs, self.idle] = IDLE_ROW
        starts, rows, own = self._state[: 3 * runs].split(runs)
        self.own_rows, self.length, self.token = self._state[3 * runs :]
        self.runs = [RunExtents(starts[run], rows[run], own[run], self.own_rows) for run in range(runs)]

    def write(self, slots: Sequence[int], states: Sequence[SlotState]) -> None:
        """Put sequences into slots. Nothing waits for the device."""
        columns = [
            [*state.prefix_starts, *state.prefix_rows, *state.own_starts, state.own_rows, state.length, state.token]
            for state in states
        ]
        values = on_device([value for column in columns for value in column], self._device, torch.int32)
        self._state.index_copy_(1, on_device(slots, self._device), values.view(len(slots), -1).t())

    def positions(self, rows: NewRows) -> Tensor:
        """(T,) int32, the position of each new row."""
        return self.length[rows.slot] + self.own_rows[rows.slot] + rows.number
