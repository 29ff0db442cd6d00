"""The memory that decoding reads: keys and values of many prefixes and of the tokens behind them.

Each run of layers that hold the same rows has one pair of tensors. A prefix has a range of rows (an extent) in each of
them, and so have the tokens that are appended behind it. Restore writes prefixes straight into their extents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.errors import TrioRayError
from trio_ray.kv.prefix import Prefix
from trio_ray.model.decode.extents import Extents

IDLE_ROW = 0
"""A row that no sequence has. The padding of a batch is written there."""


class OutOfRows(TrioRayError):
    """The pool has no room for so many rows now."""


@dataclass(frozen=True)
class PoolShape:
    """What the rows of a pool are.

    Attributes:
        layers: layers of each run.
        kv_heads, head_dim: of the model.
        dtype: of keys and values.
    """

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, prefix: Prefix, dtype: torch.dtype) -> PoolShape:
        """The shape for prefixes like this one; keys and values are kept as `dtype`."""
        layers = tuple(segment.layers for segment in prefix.segments)
        _, _, kv_heads, head_dim = prefix.segments[0].keys.shape
        return cls(layers, kv_heads, head_dim, dtype)

    @property
    def bytes_per_row(self) -> tuple[int, ...]:
        """Bytes that one row takes in all layers of each run."""
        vector = 2 * self.kv_heads * self.head_dim * self.dtype.itemsize
        return tuple(layers * vector for layers in self.layers)


@dataclass(eq=False)
class PoolPrefix:
    """A prefix in the pool. Any number of sequences read it; it is freed when its last holder releases it.

    Attributes:
        starts, rows: its extent in each run of layers.
        holders: how many sequences and allocations hold it.
    """

    starts: tuple[int, ...]
    rows: tuple[int, ...]
    holders: int = 1


@dataclass(frozen=True)
class OwnRows:
    """Room for the tokens of one sequence: `rows` rows from `starts` on, in each run of layers."""

    starts: tuple[int, ...]
    rows: int


@dataclass
class _Run:
    keys: Tensor
    values: Tensor
    extents: Extents

    @property
    def rows(self) -> int:
        return self.keys.shape[1]


class KVPool:
    """Keys and values, (layers, rows, kv_heads, head_dim), of each run of layers. Row 0 of each belongs to nobody.

    Args:
        shape: of the model and its prefixes.
        device: where decoding runs.
        rows: rows of each run to begin with.
    """

    def __init__(self, shape: PoolShape, device: torch.device, rows: Sequence[int] | None = None) -> None:
        self.shape, self.device = shape, device
        self._prefixes: dict[int, PoolPrefix] = {}  # by the first row in the first run
        self._runs: list[_Run] = []
        self.reset([0] * len(shape.layers) if rows is None else rows)

    def reset(self, rows: Sequence[int]) -> None:
        """Begin anew with so many rows for sequences in each run; nobody may hold any."""
        self._prefixes.clear()
        self._runs = []  # the old memory is free before the new one is taken
        for layers, count in zip(self.shape.layers, rows, strict=True):
            total = IDLE_ROW + 1 + count
            self._runs.append(_Run(*self._make(layers, total), Extents(total, first=IDLE_ROW + 1)))

    def _make(self, layers: int, rows: int) -> tuple[Tensor, Tensor]:
        size = (layers, rows, self.shape.kv_heads, self.shape.head_dim)
        # Zeros, not `empty`: attention on a CPU weighs padding with 0, and 0 * NaN is NaN.
        keys, values = (torch.zeros(size, dtype=self.shape.dtype, device=self.device) for _ in range(2))
        return keys, values

    def grow(self, rows: Sequence[int]) -> None:
        """Add rows to each run. What is in the pool keeps its place, but moves to other memory."""
        for run, layers, more in zip(self._runs, self.shape.layers, rows, strict=True):
            if more <= 0:
                continue
            keys, values = self._make(layers, run.rows + more)
            keys[:, : run.rows], values[:, : run.rows] = run.keys, run.values
            run.extents.give_back(run.rows, more)
            run.keys, run.values = keys, values

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of each run, used or free."""
        return tuple(run.rows for run in self._runs)

    @property
    def free_rows(self) -> tuple[int, ...]:
        """Free rows of each run."""
        return tuple(run.extents.free for run in self._runs)

    @property
    def runs(self) -> int:
        """Number of runs of layers."""
        return len(self._runs)

    @property
    def used(self) -> bool:
        """Whether any row belongs to a sequence."""
        return any(run.extents.free < run.rows - 1 for run in self._runs)

    def keys(self, run: int) -> Tensor:
        """(layers, rows, kv_heads, head_dim)."""
        return self._runs[run].keys

    def values(self, run: int) -> Tensor:
        """(layers, rows, kv_heads, head_dim)."""
        return self._runs[run].values

    def reserve_prefix(self, rows: Sequence[int]) -> PoolPrefix:
        """Extents of so many rows in each run, held once. Raises `OutOfRows`."""
        prefix = PoolPrefix(self._take(rows), tuple(rows))
        self._prefixes[prefix.starts[0]] = prefix
        return prefix

    def add(self, prefix: Prefix) -> PoolPrefix:
        """Copy a prefix into the pool, held once. Raises `OutOfRows`."""
        added = self.reserve_prefix([segment.rows for segment in prefix.segments])
        for run, start, segment in zip(self._runs, added.starts, prefix.segments, strict=True):
            run.keys[:, start : start + segment.rows].copy_(segment.keys, non_blocking=True)
            run.values[:, start : start + segment.rows].copy_(segment.values, non_blocking=True)
        return added

    def find(self, prefix: Prefix) -> PoolPrefix | None:
        """The extents of a prefix that was restored into this pool; None where its tensors are elsewhere.

        Raises:
            ValueError: its rows are free again, so others may have written there.
        """
        keys, mine = prefix.segments[0].keys, self._runs[0].keys
        if keys.untyped_storage().data_ptr() != mine.untyped_storage().data_ptr():
            return None
        found = self._prefixes.get(keys.storage_offset() // mine.stride(1))
        if found is None:
            raise ValueError("the prefix was restored into a decode pool that has freed its rows: restore it again")
        return found

    def hold(self, prefix: PoolPrefix) -> PoolPrefix:
        """Hold it once more."""
        prefix.holders += 1
        return prefix

    def release(self, prefix: PoolPrefix) -> None:
        """Take back one hold; without any its rows are free."""
        prefix.holders -= 1
        if prefix.holders == 0:
            del self._prefixes[prefix.starts[0]]
            for run, start, rows in zip(self._runs, prefix.starts, prefix.rows, strict=True):
                run.extents.give_back(start, rows)

    def take_own(self, rows: int) -> OwnRows:
        """Room for `rows` appended tokens in every run. Raises `OutOfRows`."""
        return OwnRows(self._take([rows] * len(self._runs)), rows)

    def free_own(self, own: OwnRows) -> None:
        """Free the room of appended tokens."""
        for run, start in zip(self._runs, own.starts, strict=True):
            run.extents.give_back(start, own.rows)

    def move_own(self, own: OwnRows, used: int, rows: int) -> OwnRows:
        """Larger room for appended tokens, `used` of which are copied. Raises `OutOfRows`; `own` is then unchanged."""
        larger = self.take_own(rows)
        for run, old, new in zip(self._runs, own.starts, larger.starts, strict=True):
            run.keys[:, new : new + used] = run.keys[:, old : old + used]
            run.values[:, new : new + used] = run.values[:, old : old + used]
        self.free_own(own)
        return larger

    def _take(self, rows: Sequence[int]) -> tuple[int, ...]:
        starts: list[int] = []
        for run, wanted in zip(self._runs, rows, strict=True):
            start = run.extents.take(wanted)
            if start is None:
                for earlier, begun, count in zip(self._runs, starts, rows, strict=False):
                    earlier.extents.give_back(begun, count)
                raise OutOfRows(f"{wanted:,} rows are wanted and {run.extents.free:,} of {run.rows:,} are free")
            starts.append(start)
        return tuple(starts)
