"""Wide elements as planes of bytes: first the lowest bytes of all elements, then the next, so that what is alike lies
together.

The sign of a float goes to its lowest bit before. Its highest byte is then the exponent (of bfloat16 the whole of it),
which Huffman codes make small; the rest is close to noise and is stored as it is.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

WHOLE = {2: torch.int16, 4: torch.int32}
"""By bytes of an element the integers that its bits are moved in."""


class TensorSpec(NamedTuple):
    """A stored tensor of one sample before its lossless stage.

    Attributes:
        dtype, shape: of the tensor.
        runs: of a tensor of bytes, the lengths in order of stretches that differ in how often each byte occurs; they
            add up to its size. Empty for one stretch, and for wide elements, whose planes are the stretches.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    runs: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def stretches(self) -> tuple[int, ...]:
        """Bytes of each stretch that may have Huffman codes of its own."""
        width = self.dtype.itemsize
        return self.runs or (self.size // width,) * width


def split_planes(tensor: Tensor) -> Tensor:
    """Flat uint8, the planes of a tensor; a view of a tensor of bytes."""
    flat, width = tensor.contiguous().reshape(-1), tensor.element_size()
    if width == 1:
        return flat.view(torch.uint8)
    if tensor.is_floating_point():
        whole = flat.view(WHOLE[width])
        flat = (whole << 1) | ((whole >> (8 * width - 1)) & 1)
    return flat.view(torch.uint8).view(-1, width).T.contiguous().view(-1)


def join_planes(planes: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Undo `split_planes`. A tensor of bytes is a view."""
    width = dtype.itemsize
    if width == 1:
        return planes.view(dtype).view(shape)
    whole = planes.view(width, -1).T.contiguous().view(-1).view(WHOLE[width])
    if dtype.is_floating_point:
        whole = ((whole >> 1) & ((1 << (8 * width - 1)) - 1)) | (whole << (8 * width - 1))
    return whole.view(dtype).view(shape)
