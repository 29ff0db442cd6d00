"""Host memory that a GPU copies into and another process reads from, lent out batch by batch and used again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod

import torch
from torch import Tensor

from trio_ray.shared_block import SharedBlock

ALIGNMENT = 64
ROOM = 1.25
"""A block is made this much larger than what it is first needed for: the next batch may be a little larger."""

GRAIN = 1 << 20


class Lease:
    """A block for as long as a batch needs it. `allocate` gives out its memory piece by piece."""

    def __init__(self, block: SharedBlock, give_back: Callable[[SharedBlock], None]) -> None:
        self.block = block
        self._give_back = give_back
        self._used = 0
        self._released = False

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in the block, contents undefined."""
        size = prod(shape) * dtype.itemsize
        start, self._used = self._used, self._used + aligned(size)
        return self.block.data[start : start + size].view(dtype).view(shape)

    def release(self) -> None:
        """Nobody reads the tensors any more. Does nothing the second time, when another batch may have the block."""
        if not self._released:
            self._released = True
            self._give_back(self.block)


@dataclass(frozen=True)
class ShmReference:
    """Where a tensor lies in shared memory: what is sent to another process in its stead."""

    block: int
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor, blocks: Sequence[SharedBlock]) -> ShmReference:
        """Raises `ValueError` for a tensor that lies in none of the blocks, or in pieces."""
        size = tensor.numel() * tensor.element_size()
        for block in blocks:
            start = tensor.data_ptr() - block.data.data_ptr() if size else 0
            if 0 <= start <= len(block) - size and tensor.is_contiguous():
                return cls(block.number, start, tuple(tensor.shape), tensor.dtype)
        raise ValueError(f"a tensor {tuple(tensor.shape)} lies in none of the blocks that its batch was given")

    def tensor(self, block: SharedBlock) -> Tensor:
        """The tensor, a view of the block."""
        size = prod(self.shape) * self.dtype.itemsize
        return block.data[self.start : self.start + size].view(self.dtype).view(self.shape)


class HostMemory:
    """All blocks of a replica. There are as many as batches are on their way; thread-safe.

    Args:
        pinned: for copies from a GPU.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._free: list[SharedBlock] = []
        self._alive: dict[int, SharedBlock] = {}
        self._numbers = count()
        self._lock = threading.Lock()

    @property
    def alive(self) -> frozenset[int]:
        """Numbers of the blocks that may still be used."""
        with self._lock:
            return frozenset(self._alive)

    def lease(self, size: int) -> Lease:
        """A block of at least so many bytes: the smallest free one, or a new one in the place of a free smaller one.

        Raises:
            MemoryError: there is not so much memory that can be shared, or pinned.
        """
        with self._lock:
            fitting = [block for block in self._free if len(block) >= size]
            block = min(fitting, key=len, default=None)
            if block is None:
                if self._free:
                    self._close(max(self._free, key=len))
                block = SharedBlock.make(next(self._numbers), GRAIN * (1 + int(ROOM * size) // GRAIN), self._pinned)
                self._alive[block.number] = block
            else:
                self._free.remove(block)
        return Lease(block, self._give_back)

    def _give_back(self, block: SharedBlock) -> None:
        with self._lock:
            self._free.append(block)

    def _close(self, block: SharedBlock) -> None:
        self._free.remove(block)
        del self._alive[block.number]
        block.close()


def aligned(size: int) -> int:
    """Bytes that a piece of `size` bytes takes in a block."""
    return -(-size // ALIGNMENT) * ALIGNMENT
