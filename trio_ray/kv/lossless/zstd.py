"""The lossless stage: zstd over the bytes of one tensor, the lowest bytes of all elements first, then the next.

Only zstd's own frame format is stored, which every version of the library reads. A GPU makes such frames itself
(`frames`).
"""

from __future__ import annotations

from math import prod

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_RATIO = 32
SMALL = 4096
"""What would shrink below 1/32, and is larger than this, is stored as it is: so no reader has to believe a few bytes
that promise gigabytes."""


def shrink(tensor: Tensor, level: int) -> Tensor:
    """The bytes of a tensor in host memory through zstd, (n,) uint8; as they are where zstd does not shrink them."""
    plain = tensor.contiguous().reshape(-1).view(torch.uint8)
    if not len(plain):
        return plain
    planes = plain.view(-1, tensor.element_size()).T.contiguous().numpy()
    packed = pa.Codec("zstd", compression_level=level).compress(planes)
    return torch.frombuffer(packed, dtype=torch.uint8) if is_shrunk(len(packed), len(plain)) else plain


def is_shrunk(stored: int, size: int) -> bool:
    """Whether `stored` bytes may stand for a tensor of `size` bytes that was shrunk."""
    return stored < size <= max(MAX_RATIO * stored, SMALL)


def expand(stored: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Undo `shrink`. Its size must be that of the tensor, or pass `is_shrunk`.

    Raises:
        ValueError: it is no zstd frame of exactly this size.
    """
    size = prod(shape) * dtype.itemsize
    if not size and not len(stored):
        return torch.empty(shape, dtype=dtype)
    if len(stored) == size:
        is_usable = stored.flags.writeable and not stored.ctypes.data % dtype.itemsize
        return torch.from_numpy(stored if is_usable else stored.copy()).view(dtype).view(shape)
    try:
        plain = pa.Codec("zstd").decompress(stored, decompressed_size=size)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a zstd frame of {size} bytes: {error}") from None
    planes = torch.from_numpy(np.frombuffer(plain, np.uint8)).view(dtype.itemsize, -1)
    return planes.T.contiguous().view(-1).view(dtype).view(shape)
