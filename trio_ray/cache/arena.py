"""Host memory for stored bytes: bounded, and used again.

Fresh memory costs a page fault for every 4 KiB, and pinned memory, which a GPU copies from without a detour, costs
far more to make. So blocks go back to the arena, and the next batch is read into one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from trio_ray.ordered import interpreter_ends
from trio_ray.shared_block import SharedBlock

_SMALLEST = 1 << 20
_GLANCE_S = 0.2
_numbers = count()


class BatchMemory:
    """Memory for the stored bytes of a batch, of this process alone.

    Attributes:
        tensor: (size,) uint8.
        ready: when a device is done with what was last in it; None where none uses it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.ready: torch.cuda.Event | None = None

    @classmethod
    def of_size(cls, size: int) -> BatchMemory:
        """New memory, with undefined content."""
        return cls(torch.empty(size, dtype=torch.uint8))


class SharedBatchMemory(BatchMemory):
    """The same that a reader process can write to, pinned where there is a GPU.

    Attributes:
        block: what the process is shown.
    """

    def __init__(self, block: SharedBlock) -> None:
        super().__init__(block.data)
        self.block = block

    @classmethod
    def of_size(cls, size: int) -> SharedBatchMemory:
        return cls(SharedBlock.make(next(_numbers), size, torch.cuda.is_available()))


class Spare:
    """Memory that is not in use. Arenas that follow each other may share it.

    Args:
        limit: bytes that are kept.
        make: new memory of so many bytes.
    """

    def __init__(self, limit: int, make: Callable[[int], BatchMemory] = BatchMemory.of_size) -> None:
        self._limit, self._make = limit, make
        self._free: list[BatchMemory] = []
        self._changing = threading.Lock()

    def take(self, capacity: int, room: int) -> BatchMemory:
        """Memory of just this capacity. Where there is none, the longest unused gives way, until the rest and the new
        one fit into `room` bytes.
        """
        with self._changing:
            for number, memory in enumerate(self._free):
                if len(memory.tensor) == capacity:
                    del self._free[number]
                    break
            else:
                memory = None
                self._shorten(room - capacity)
        if memory is None:
            return self._make(capacity)
        if memory.ready is not None:
            memory.ready.synchronize()
        return memory

    def put(self, memory: BatchMemory) -> None:
        """Keep it for the next one who wants as much."""
        with self._changing:
            self._free.append(memory)
            self._shorten(self._limit)

    def _shorten(self, limit: int) -> None:
        while self._free and sum(len(memory.tensor) for memory in self._free) > max(0, limit):
            memory = self._free.pop(0)
            if memory.ready is not None:
                memory.ready.synchronize()


class Block:
    """Host memory for one batch. `tensor` is (size,) uint8."""

    def __init__(self, arena: Arena, memory: BatchMemory, size: int) -> None:
        self._arena = arena
        self.memory = memory
        self.tensor = memory.tensor[:size]

    def release(self, after: torch.cuda.Event | None = None) -> None:
        """Let the memory be used again, once the device has passed `after`. Call it once."""
        self.memory.ready = after
        self._arena._take_back(self, keep=True)

    def keep(self) -> None:
        """The memory stays with whoever holds `tensor`; the arena no longer counts it. Call it instead of `release`."""
        self._arena._take_back(self, keep=False)


class Arena:
    """Blocks of host memory, of at most `limit` bytes in all; a larger one is given out while no other is.

    `take` and `Block.release` may be called from different threads.

    Args:
        limit: bytes that may be out at one time.
        spare: where memory comes from and goes back to; some of its own if not given.
    """

    def __init__(self, limit: int, spare: Spare | None = None) -> None:
        self._limit = limit
        self._spare = spare or Spare(limit)
        self._out = 0
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
            room = self._limit - self._out + capacity
        return Block(self, self._spare.take(capacity, room), size)

    def close(self) -> None:
        """Let whoever waits in `take` go, with None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take_back(self, block: Block, keep: bool) -> None:
        with self._changed:
            self._out -= len(block.memory.tensor)
            if keep:
                self._spare.put(block.memory)
            self._changed.notify_all()
