"""Memory that is shared with another process and that a GPU copies to or from without a detour."""

from __future__ import annotations

import weakref

import torch

from trio_ray.child_process import SharedMemory, new_file


class SharedBlock(SharedMemory):
    """Shared memory as a tensor.

    Attributes:
        data: (size,) uint8.
    """

    def __init__(self, number: int, size: int, file: int, pinned: bool = False) -> None:
        super().__init__(number, size, file)
        self.data = torch.frombuffer(self.view, dtype=torch.uint8)
        self._unpin = None
        if pinned:
            place, runtime = self.data.data_ptr(), torch.cuda.cudart()
            code = int(runtime.cudaHostRegister(place, size, 0))
            if code:
                raise MemoryError(f"the GPU's driver does not pin {size} bytes of host memory: CUDA error {code}")
            # Before the memory is unmapped, or the driver would take whatever comes to this address for pinned.
            self._unpin = weakref.finalize(self, runtime.cudaHostUnregister, place)
            self._unpin.atexit = False

    @classmethod
    def make(cls, number: int, size: int, pinned: bool = False) -> SharedBlock:
        """A new one; `pinned` for copies to or from a GPU that run beside everything else.

        Raises:
            MemoryError, OSError: there is not so much memory that can be shared, or pinned.
        """
        return cls(number, size, new_file(size), pinned)

    def close(self) -> None:
        if self._unpin is not None:
            self._unpin()
        super().close()
