"""Keys and values bit for bit, in the dtype they were computed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodedSegments, SegmentToRestore
from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.tensors import move_together


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

    def restore(self, segments: Sequence[SegmentToRestore]) -> None:
        """See `Codec`."""
        host = [torch.from_numpy(segment.places()) for segment in segments]
        for segment, rows in zip(segments, move_together(host, segments[0].target.device), strict=True):
            for name, out in (("k", segment.target.keys), ("v", segment.target.values)):
                out.index_copy_(1, rows, segment.tensors[name].transpose(0, 1).to(out.dtype))
