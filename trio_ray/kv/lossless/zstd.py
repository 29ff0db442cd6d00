"""The lossless stage on a CPU: zstd over the planes of bytes of one tensor.

Only zstd's own frame format is stored, which every version of the library reads. A GPU makes such frames itself
(`frames`).
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.lossless.planes import TensorSpec, join_planes, split_planes

MAX_RATIO = 32
SMALL = 4096
"""What zstd makes smaller than 1/32, and is larger than this, is stored as it is: so no reader has to believe a few
bytes that promise gigabytes."""


def compress(tensor: Tensor, level: int) -> Tensor:
    """The planes of a tensor in host memory as a zstd frame, (n,) uint8; as they are where no frame is smaller."""
    planes = split_planes(tensor)
    if not len(planes):
        return planes
    packed = pa.Codec("zstd", compression_level=level).compress(planes.numpy())
    return torch.frombuffer(packed, dtype=torch.uint8) if is_compressed(len(packed), len(planes)) else planes


@overload
def is_compressed(stored: int, size: int) -> bool: ...


@overload
def is_compressed(stored: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.bool_]: ...


def is_compressed(stored: Any, size: Any) -> Any:
    """Whether `stored` bytes may be the frame of a tensor of `size` bytes; of numbers, or of arrays of them."""
    return (stored > 0) & (stored < size) & ((size <= MAX_RATIO * stored) | (size <= SMALL))


def decompress(stored: NDArray[np.uint8], spec: TensorSpec) -> Tensor:
    """Undo `compress`. The stored bytes must be as many as the tensor's, or pass `is_compressed`.

    Raises:
        ValueError: they are no zstd frame of exactly the tensor's size.
    """
    return join_planes(torch.from_numpy(decompress_planes(stored, spec.size)), spec.dtype, spec.shape)


def decompress_planes(stored: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The planes alone, (size,) uint8. Raises what `decompress` raises."""
    if len(stored) == size:
        return stored if stored.flags.writeable and size else stored.copy()
    planes = np.empty(size, np.uint8)
    decompress_into(stored, planes)
    return planes


def decompress_into(stored: NDArray[np.uint8], planes: NDArray[np.uint8]) -> None:
    """`decompress_planes` into memory that there is, without Python's lock.

    Memory that is fresh for every tensor is what keeps threads from working side by side: the system hands it out page
    by page under one lock.

    Args:
        stored: as `compress` gives them.
        planes: (size,), takes them.

    Raises:
        ValueError: they are no zstd frame of exactly so many bytes.
    """
    if len(stored) == len(planes):
        planes[:] = stored
        return
    try:
        stream = pa.CompressedInputStream(pa.BufferReader(stored), "zstd")
        if stream.readinto(planes.data) != len(planes) or stream.read(1):
            raise ValueError(f"not a zstd frame of {len(planes)} bytes")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a zstd frame of {len(planes)} bytes: {error}") from None
