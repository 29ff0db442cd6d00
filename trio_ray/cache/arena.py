"""Host memory for stored bytes: bounded, and used again.

Fresh memory costs a page fault for every 4 KiB, and pinned memory, which a GPU copies from without a detour, costs
far more to make. So blocks go back to the arena, and the next batch is read into one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
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

    def when_unused(self) -> BatchMemory:
        """The memory, as soon as no device uses it."""
        if self.ready is not None:
            self.ready.synchronize()
        return self

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


class Stock:
    """Memory for the blocks of arenas, in use or spare, which they share: of at most `limit` bytes in use.

    Args:
        limit: bytes in use, and bytes that are kept for later.
        make: new memory of so many bytes.
    """

    def __init__(self, limit: int, make: Callable[[int], BatchMemory] = BatchMemory.of_size) -> None:
        self._limit, self._make = limit, make
        self._spare: list[BatchMemory] = []
        self._in_use = 0
        self.changed = threading.Condition()

    def has_room(self, capacity: int) -> bool:
        """Whether so much more may be in use. Hold `changed`."""
        return self._in_use + capacity <= self._limit

    def claim(self, capacity: int) -> Callable[[], BatchMemory]:
        """Count memory of at least this capacity as in use: the smallest spare one, or new one in the place of what has
        been spare for longest. Hold `changed`, ask `has_room` before.

        Returns:
            A function that gives the memory; it may take long, so call it without `changed`. It raises `MemoryError` or
            `OSError` where there is not so much.
        """
        fitting = [memory for memory in self._spare if len(memory.tensor) >= capacity]
        if fitting:
            memory = min(fitting, key=lambda memory: len(memory.tensor))
            self._spare.remove(memory)
            self._in_use += len(memory.tensor)
            return memory.when_unused
        dropped = self._shorten(self._limit - self._in_use - capacity)
        self._in_use += capacity
        return partial(self._new, capacity, dropped)

    def _new(self, capacity: int, dropped: list[BatchMemory]) -> BatchMemory:
        _let_go(dropped)
        try:
            return self._make(capacity)
        except BaseException:
            with self.changed:
                self._in_use -= capacity
                self.changed.notify_all()
            raise

    def fill(self, size: int, count: int) -> None:
        """Make memory for `count` blocks of `size` bytes ahead, and keep it.

        The limit may allow fewer blocks. Then one more than it allows is made: an arena gets its first block at once,
        even while another arena has all the others.

        Raises:
            MemoryError, OSError: there is not so much memory; what was made is kept.
        """
        capacity = _capacity(size)
        made: list[BatchMemory] = []
        try:
            while len(made) < count:
                with self.changed:
                    if self._in_use > self._limit:
                        break
                    memory = self.claim(capacity)
                made.append(memory())
        finally:
            for one in made:
                self.put(one, keep=True)

    def put(self, memory: BatchMemory, keep: bool) -> None:
        """It is in use no more; `keep` it for the next who wants as much, or leave it to whoever else has it."""
        with self.changed:
            self._in_use -= len(memory.tensor)
            if keep:
                self._spare.append(memory)
            dropped = self._shorten(self._limit + len(memory.tensor))  # an arena's first block goes beyond the limit
            self.changed.notify_all()
        _let_go(dropped)

    def _shorten(self, limit: int) -> list[BatchMemory]:
        """Take out what has been spare for longest, until the others fit."""
        dropped = []
        while self._spare and sum(len(memory.tensor) for memory in self._spare) > max(0, limit):
            dropped.append(self._spare.pop(0))
        return dropped


def _capacity(size: int) -> int:
    """Bytes of the memory for a block of `size` bytes: powers of two, so that other sizes can use it again."""
    return max(_SMALLEST, 1 << (size - 1).bit_length())


def _let_go(memories: list[BatchMemory]) -> None:
    """Give memories back, each as soon as no device uses it. It takes long: hold no lock."""
    while memories:
        memories.pop().when_unused()


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
    """Blocks of host memory for one reader.

    Arenas that share a stock wait for each other's blocks; but one that has no block out gets one at once, however much
    the others have. Else two readers whose consumer takes from them in turns would wait for ever.

    `take` and `Block.release` may be called from different threads.

    Args:
        stock: where memory comes from and goes back to.
    """

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._blocks_out = 0
        self._closed = False

    def take(self, size: int) -> Block | None:
        """A block of `size` bytes, with undefined content; waits for memory. None once the arena is closed, and where
        the interpreter ends meanwhile.

        Raises:
            MemoryError, OSError: there is not so much memory.
        """
        capacity = _capacity(size)
        changed = self._stock.changed
        with changed:
            while self._blocks_out and not self._stock.has_room(capacity) and not self._closed:
                changed.wait(_GLANCE_S)
                if interpreter_ends():  # nobody will release anything any more
                    return None
            if self._closed:
                return None
            memory = self._stock.claim(capacity)
            self._blocks_out += 1
        try:
            return Block(self, memory(), size)
        except BaseException:
            with changed:
                self._blocks_out -= 1
            raise

    def close(self) -> None:
        """Let whoever waits in `take` go, with None."""
        with self._stock.changed:
            self._closed = True
            self._stock.changed.notify_all()

    def _take_back(self, block: Block, keep: bool) -> None:
        with self._stock.changed:
            self._blocks_out -= 1
        self._stock.put(block.memory, keep)
