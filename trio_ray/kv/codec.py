"""How the keys and values of a segment become stored tensors and come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trio_ray.kv.prefix import Segment


@dataclass(frozen=True)
class SegmentShape:
    """What the container's header says of a segment."""

    first_layer: int
    layers: int
    rows: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, segment: Segment) -> SegmentShape:
        """The shape of a segment in memory."""
        layers, rows, heads, dim = segment.keys.shape
        return cls(segment.first_layer, layers, rows, heads, dim, segment.keys.dtype)

    @property
    def size(self) -> tuple[int, int, int, int]:
        """(layers, rows, kv_heads, head_dim)."""
        return self.layers, self.rows, self.kv_heads, self.head_dim


class Codec(Protocol):
    """One way to store keys and values. Its `name` is stored with the data, so it never changes its meaning."""

    name: str

    def encode(self, segment: Segment) -> dict[str, Tensor]:
        """Named tensors to store; the same on every machine for the same input."""
        ...

    def layout(self, shape: SegmentShape) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor that `encode` makes of a segment of this shape."""
        ...

    def decode(self, tensors: dict[str, Tensor], shape: SegmentShape) -> Segment:
        """The segment again, on the device of `tensors`, which have been checked against `layout`."""
        ...


def codec_named(name: str) -> Codec:
    """The codec of a stored name. Raises `KeyError` for a name that this version does not know."""
    return CODECS[name]


class Raw:
    """Keys and values bit for bit, in the dtype they were computed in."""

    name = "raw"

    def encode(self, segment: Segment) -> dict[str, Tensor]:
        """See `Codec`."""
        return {"k": segment.keys.contiguous(), "v": segment.values.contiguous()}

    def layout(self, shape: SegmentShape) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """See `Codec`."""
        return {"k": (shape.dtype, shape.size), "v": (shape.dtype, shape.size)}

    def decode(self, tensors: dict[str, Tensor], shape: SegmentShape) -> Segment:
        """See `Codec`."""
        return Segment(shape.first_layer, tensors["k"], tensors["v"])


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Raw(),)}
