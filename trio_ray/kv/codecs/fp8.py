"""Eight-bit floats (e4m3): one float16 scale a row, head and group of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs.arithmetic import arithmetic
from trio_ray.kv.codecs.codec import Codec, CodedSegments
from trio_ray.kv.codecs.spec import Fp8Spec
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.kv.target import RowTarget


@dataclass(frozen=True)
class Fp8(Codec):
    """Tensors `k` and `v`, (rows, layers, kv_heads, head_dim) e4m3 as bytes; `k.scale` and `v.scale`, float16."""

    settings: Fp8Spec

    def encode(self, batch: SegmentBatch) -> CodedSegments:
        """See `Codec`."""
        encode_floats = arithmetic(batch.keys.device).encode_floats
        tensors = {}
        for name, source in (("k", batch.keys), ("v", batch.values)):
            tensors[name], tensors[f"{name}.scale"] = encode_floats(source, self._group(source.shape[-1]))
        return CodedSegments(tensors, dict.fromkeys(tensors, batch.lengths))

    def layout(self, shape: SegmentShape) -> dict[str, TensorSpec]:
        """See `Codec`."""
        rows = (shape.rows, shape.layers, shape.kv_heads)
        codes = TensorSpec(torch.uint8, (*rows, shape.head_dim))
        scales = TensorSpec(torch.float16, (*rows, shape.head_dim // self._group(shape.head_dim)))
        return {"k": codes, "k.scale": scales, "v": codes, "v.scale": scales}

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        shapes: Sequence[SegmentShape],
        position: Tensor,
        text: Tensor,
        target: RowTarget,
    ) -> None:
        """See `Codec`."""
        decode_floats = arithmetic(target.rows.device).decode_floats
        for name, out in (("k", target.keys), ("v", target.values)):
            decode_floats(tensors[name], tensors[f"{name}.scale"], target.rows, self._group(shapes[0].head_dim), out)

    def _group(self, dim: int) -> int:
        return gcd(self.settings.group, dim)
