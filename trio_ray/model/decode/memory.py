"""The pool of an engine, which grows as it is needed, and what has to be made anew when it moves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from trio_ray.kv.prefix import Prefix
from trio_ray.model.decode.forward import Forward
from trio_ray.model.decode.graphs import StepGraphs
from trio_ray.model.decode.pool import KVPool, PoolPrefix, PoolShape
from trio_ray.model.decode.rows import NewRows, SlotTable
from trio_ray.model.decoder import Decoder
from trio_ray.tensors import has_triton, on_device

MEMORY_SHARE = 0.6
"""What keys and values may take of the GPU memory that is free when the engine is made, or of a host's memory."""
GROWTH = 0.25
"""Least share of its rows that a pool grows by: every growth copies it and records the decode steps anew."""
LEAST_GROWTH = 0.02
"""Share of the limit."""


class DecodeMemory:
    """Prefixes in a pool, and passes over them.

    Args:
        decoder: the model.
        shape: of the pool.
        slots: most sequences at a time.
        limit: bytes that the pool may take.
    """

    def __init__(self, decoder: Decoder, shape: PoolShape, slots: int, limit: int) -> None:
        device = next(decoder.embed.parameters()).device
        self.pool = KVPool(shape, device)
        self.table = SlotTable(len(shape.layers), slots, device)
        self.forward = Forward(decoder, self.pool, self.table)
        self._decoder, self._device, self._limit = decoder, device, limit
        self._longest = [1] * len(shape.layers)
        self._graphs: StepGraphs | None = None
        self._added: dict[int, tuple[Prefix, PoolPrefix]] = {}

    def add(self, prefix: Prefix) -> PoolPrefix:
        """Hold a prefix: the rows of the same object that came before, or a copy. Raises `OutOfRows`."""
        if id(prefix) in self._added:
            return self.pool.hold(self._added[id(prefix)][1])
        held = self.pool.add(prefix)
        self._added[id(prefix)] = prefix, held
        return held

    def release(self, held: PoolPrefix) -> None:
        """Take back one hold of a prefix."""
        self.pool.release(held)
        if not held.holders:
            self._added = {key: entry for key, entry in self._added.items() if entry[1] is not held}

    def grow(self, wanted: Sequence[int], in_all: Sequence[int] = ()) -> bool:
        """Make so many rows of each run free, as far as the limit allows; whether anything changed.

        Args:
            wanted: free rows of each run.
            in_all: a run that has to grow gets so many rows, used or free, as far as the limit allows.
        """
        rows, free = self.pool.rows, self.pool.free_rows
        missing = [max(0, want - has) for want, has in zip(wanted, free, strict=True)]
        more = [max(lack, int(GROWTH * has)) if lack else 0 for lack, has in zip(missing, rows, strict=True)]
        asked, left = self._bytes(more), self._limit - self._bytes(rows)
        if asked > left:
            if left < LEAST_GROWTH * self._limit:
                return False  # the last rows are not worth a copy of the others
            more = [int(count * left / asked) for count in more]
        elif in_all:
            ahead = [max(0, most - has - new) if new else 0 for most, has, new in zip(in_all, rows, more, strict=True)]
            share = min(1.0, (left - asked) / max(1, self._bytes(ahead)))
            more = [new + int(share * count) for new, count in zip(more, ahead, strict=True)]
        if not any(more):
            return False
        try:
            self.pool.grow(more)
        except torch.OutOfMemoryError:
            return False
        finally:
            self.forget_graphs()
        return True

    def restart(self, rows: Sequence[int]) -> bool:
        """Divide the memory anew among the runs of an unused pool, so that so many rows fit; whether they do."""
        if self.pool.used or self._bytes(rows) > self._limit:
            return False
        self.pool.reset(rows)
        self.forget_graphs()
        return True

    def _bytes(self, rows: Sequence[int]) -> int:
        """Of so many rows of each run."""
        return sum(count * unit for count, unit in zip(rows, self.pool.shape.bytes_per_row, strict=True))

    def note_longest(self, rows: Sequence[int]) -> None:
        """Learn how long a sequence gets in each run of layers. Powers of 2, so that this seldom changes."""
        longest = [max(was, 1 << (now - 1).bit_length()) for was, now in zip(self._longest, rows, strict=True)]
        if longest != self._longest:
            self._longest = longest
            self.forget_graphs()

    @torch.no_grad()
    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to sequences in one pass -> (B, vocabulary) logits for what follows them."""
        counts = [len(run) for run in tokens]
        rows = self.forward.new_rows(slots, counts)
        ids = on_device([token for run in tokens for token in run], self._device)
        hidden = self.forward.hidden(ids, rows, self._longest)
        last = on_device([stop - 1 for stop in accumulate(counts)], self._device)
        return self._decoder.logits(hidden[last])

    def step(self, slots: Tensor) -> Tensor:
        """Append the next token of the sequences in these slots, (B,) int32 -> (B, vocabulary) logits for what follows.
        The next call may overwrite them.
        """
        graphs = self._step_graphs()
        if graphs is None:
            return _step(self.forward, self._longest, NewRows.one_each(slots))
        return graphs.run(slots)

    def record_steps(self, most: int) -> None:
        """Record the steps of all batch sizes for up to `most` sequences, where steps are recorded."""
        graphs = self._step_graphs()
        if graphs is not None:
            graphs.record(most)

    def _step_graphs(self) -> StepGraphs | None:
        """The steps recorded so far; None where they are not."""
        if self._graphs is None and has_triton(self._device):
            # Not a method of this object: as a part of a cycle the pool would outlive its engine.
            step = partial(_step, self.forward, self._longest)
            self._graphs = StepGraphs(step, self.table.idle, self._device)
        return self._graphs

    def forget_graphs(self) -> None:
        """Wait for the recorded steps, and drop them: they read other memory, or split it in another way."""
        if self._graphs is not None:
            torch.cuda.synchronize(self._device)  # one may be running
            self._graphs = None


@torch.no_grad()
def _step(forward: Forward, longest: Sequence[int], rows: NewRows) -> Tensor:
    """Append the next token of each of B sequences -> (B, vocabulary) logits."""
    return forward.decoder.logits(forward.hidden(forward.table.token[rows.slot], rows, longest))


def free_memory(device: torch.device) -> int:
    """The default limit of a pool, in bytes."""
    if device.type != "cuda":
        return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(MEMORY_SHARE * (free + unused))
