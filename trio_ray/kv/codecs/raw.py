"""Keys and values bit for bit, in the dtype they were computed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodedSegments
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.kv.target import RowTarget


class RawSpec(CodecSpec):
    """Keys and values bit for bit."""

    name: Literal["raw"] = "raw"


@dataclass(frozen=True)
class Raw(Codec):
    """Tensors `k` and `v`, (rows, layers, kv_heads, head_dim)."""

    Settings: ClassVar[type[CodecSpec]] = RawSpec

    settings: RawSpec

    def encode(self, batch: SegmentBatch) -> CodedSegments:
        """See `Codec`."""
        tensors = {"k": batch.keys.transpose(0, 1).contiguous(), "v": batch.values.transpose(0, 1).contiguous()}
        return CodedSegments(tensors, {"k": batch.lengths, "v": batch.lengths})

    def layout(self, shape: SegmentShape) -> dict[str, TensorSpec]:
        """See `Codec`."""
        rows = TensorSpec(shape.dtype, (shape.rows, shape.layers, shape.kv_heads, shape.head_dim))
        return {"k": rows, "v": rows}

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        shapes: Sequence[SegmentShape],
        position: Tensor,
        text: Tensor,
        target: RowTarget,
    ) -> None:
        """See `Codec`."""
        for name, out in (("k", target.keys), ("v", target.values)):
            out.index_copy_(1, target.rows, tensors[name].transpose(0, 1).to(out.dtype))
