"""Sequences in a pool, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trio_ray.model.decode.pool import KVPool, PoolShape
from trio_ray.model.decode.rows import NewRows, RunExtents, SlotState, SlotTable


@dataclass(frozen=True)
class Layout:
    """One run of one layer that holds sequences with room for new rows, all of it random numbers."""

    table: SlotTable
    keys: Tensor
    values: Tensor
    counts: Sequence[int]

    @classmethod
    def make(
        cls,
        prefixes: Sequence[int],
        appended: Sequence[int],
        counts: Sequence[int],
        kv_heads: int,
        dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Layout:
        """Sequences of so many prefix rows and appended rows, each with `counts` new ones."""
        torch.manual_seed(0)
        pool = KVPool(PoolShape((1,), kv_heads, dim, dtype), device, [sum(prefixes) + sum(appended) + sum(counts)])
        table = SlotTable(1, len(prefixes), device)
        states = []
        for rows, before, count in zip(prefixes, appended, counts, strict=True):
            own, prefix = pool.take_own(before + count), pool.reserve_prefix([rows])
            states.append(SlotState(prefix.starts, prefix.rows, own.starts, before, length=100 + rows))
        table.write(range(len(states)), states)
        pool.keys(0).normal_()
        pool.values(0).normal_()
        return cls(table, pool.keys(0)[0], pool.values(0)[0], counts)

    @property
    def extents(self) -> RunExtents:
        """Where the rows are."""
        return self.table.runs[0]

    def new_rows(self, tile_size: int) -> NewRows:
        """The new rows of all sequences."""
        return NewRows.of_counts(range(len(self.counts)), self.counts, tile_size, self.keys.device)
