"""Keys and values bit for bit, in the dtype they were computed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from trio_ray.kv.batch import SegmentBatch
from trio_ray.kv.codecs.codec import Codec, CodedSegments, SegmentShape, TensorSpec, batch_of
from trio_ray.kv.codecs.spec import RawSpec
from trio_ray.tensors import move_together


@dataclass(frozen=True)
class Raw(Codec):
    """Tensors `k` and `v`, (rows, layers, kv_heads, head_dim)."""

    settings: RawSpec

    def encode(self, batch: SegmentBatch) -> CodedSegments:
        """See `Codec`."""
        tensors = {"k": batch.keys.transpose(0, 1).contiguous(), "v": batch.values.transpose(0, 1).contiguous()}
        return CodedSegments(tensors, {"k": batch.lengths, "v": batch.lengths})

    def layout(self, shape: SegmentShape) -> dict[str, TensorSpec]:
        """See `Codec`."""
        rows = TensorSpec(shape.dtype, (shape.rows, shape.layers, shape.kv_heads, shape.head_dim))
        return {"k": rows, "v": rows}

    def decode(
        self, tensors: Mapping[str, Tensor], shapes: Sequence[SegmentShape], position: Tensor, text: Tensor
    ) -> SegmentBatch:
        """See `Codec`. Keys and values are views of the stored tensors."""
        position, text = move_together([position, text], tensors["k"].device)
        return batch_of(shapes, tensors["k"].transpose(0, 1), tensors["v"].transpose(0, 1), position, text)
