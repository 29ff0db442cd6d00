"""Host memory for stored bytes: bounded, and used again.

Fresh memory costs a page fault for every 4 KiB, and pinned memory, which a GPU copies from without a detour, costs
far more to make. So blocks go back to the arena, and the next batch is read into one of them.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from trio_ray.ordered import interpreter_ends

_SMALLEST = 1 << 20
_GLANCE_S = 0.2


class Block:
    """Host memory for one batch. `tensor` is (size,) uint8."""

    def __init__(self, arena: Arena, memory: Tensor, size: int) -> None:
        self._arena = arena
        self.memory = memory
        self.tensor = memory[:size]
        self.ready: torch.cuda.Event | None = None

    def release(self, after: torch.cuda.Event | None = None) -> None:
        """Let the arena use the memory again, once the device has passed `after`. Call it once."""
        self.ready = after
        self._arena._take_back(self, keep=True)

    def keep(self) -> None:
        """The memory stays with whoever holds `tensor`; the arena no longer counts it. Call it instead of `release`."""
        self._arena._take_back(self, keep=False)


class Arena:
    """Blocks of host memory, of at most `limit` bytes in all; a larger one is given out while no other is.

    `take` and `Block.release` may be called from different threads.

    Args:
        limit: bytes that may be out at one time.
        pinned: page-locked memory, for copies to a GPU that nothing waits for.
    """

    def __init__(self, limit: int, pinned: bool = False) -> None:
        self._limit = limit
        self._pinned = pinned
        self._out = 0
        self._free: list[Block] = []
        self._closed = False
        self._changed = threading.Condition()

    def take(self, size: int) -> Block | None:
        """A block of `size` bytes, with undefined content; waits for memory. None once the arena is closed, and where
        the interpreter ends meanwhile.
        """
        capacity = max(_SMALLEST, 1 << (size - 1).bit_length())
        with self._changed:
            while self._out and self._out + capacity > self._limit and not self._closed:
                self._changed.wait(_GLANCE_S)
                if interpreter_ends():  # nobody will release anything any more
                    return None
            if self._closed:
                return None
            self._out += capacity
            memory = self._reused(capacity)
        if memory is None:
            memory = torch.empty(capacity, dtype=torch.uint8, pin_memory=self._pinned)
        return Block(self, memory, size)

    def close(self) -> None:
        """Let whoever waits in `take` go, with None."""
        with self._changed:
            self._closed = True
            self._free.clear()
            self._changed.notify_all()

    def _reused(self, capacity: int) -> Tensor | None:
        """Memory of just this capacity, which was released; where there is none, make room for some."""
        for number, block in enumerate(self._free):
            if len(block.memory) == capacity:
                del self._free[number]
                if block.ready is not None:
                    block.ready.synchronize()
                return block.memory
        while self._free and self._out + sum(len(block.memory) for block in self._free) > self._limit:
            self._free.pop(0)
        return None

    def _take_back(self, block: Block, keep: bool) -> None:
        with self._changed:
            self._out -= len(block.memory)
            if keep and not self._closed:
                self._free.append(block)
            self._changed.notify_all()
