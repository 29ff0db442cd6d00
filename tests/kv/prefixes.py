"""Random prefixes, as a prefill would leave them: views into a larger batch's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch, SegmentBatch, SegmentShape
from trio_ray.kv.codecs.codec import Codec, SegmentToRestore
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import CodedPrefix, code_batch
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.kv.target import RowTarget

KEY, FINGERPRINT = "shard-7/0003", "0123456789abcdef" * 4
LEAD, TAIL = 3, 5
TEXTS = LEAD + TAIL

CODECS: dict[str, dict[str, Any]] = {
    "raw": {"name": "raw"},
    "raw, plain": {"name": "raw", "zstd": 0},
    "int8": {"name": "int8"},
    "int4": {"name": "int4"},
    "int4, plain": {"name": "int4", "zstd": 0},
    "int2": {"name": "int2", "key_group": 32, "value_group": 32},
    "mixed": {"name": "int", "keys": 2, "values": 8, "protected": "raw", "sinks": LEAD + 2},
}
"""Every codec that needs no calibration, with settings that take every way through it."""


def codec_of(choice: str | dict[str, Any]) -> Codec:
    """A codec as a configuration names it."""
    return make_codec(full_spec(choice))


def random_prefix(
    dtype: torch.dtype = torch.float32,
    rows: Sequence[int] = (30, 17, 9),
    layers: Sequence[int] = (1, 2, 3),
    kv_heads: int = 2,
    head_dim: int = 8,
    seed: int = 0,
) -> Prefix:
    """A prefix of `len(rows)` segments with `TEXTS` text rows each, most of them behind the image rows."""
    generator = torch.Generator().manual_seed(seed)

    def states(count: int, length: int) -> Tensor:
        numbers = torch.randn(count, length + 5, kv_heads, head_dim, generator=generator)
        return (numbers + torch.arange(head_dim) / 3).to(dtype)[:, 2 : 2 + length]

    kept = [torch.arange(rows[0] - TEXTS)]
    for length in rows[1:]:
        chosen = torch.randperm(len(kept[-1]), generator=generator)[: length - TEXTS].sort().values
        kept.append(kept[-1][chosen])
    segments, first = [], 0
    for count, images in zip(layers, kept, strict=True):
        position = torch.cat([torch.arange(LEAD), images + LEAD, torch.arange(rows[0] - TAIL, rows[0])])
        text = torch.zeros(len(position), dtype=torch.bool)
        text[:LEAD] = text[len(text) - TAIL :] = True
        length = len(position)
        segments.append(Segment(first, states(count, length), states(count, length), position.int(), text))
        first += count
    return Prefix(
        length=rows[0], lead=LEAD, segments=tuple(segments), kept=tuple(images.int() for images in kept[1:]),
        top_ids=torch.tensor([7, 2, 40], dtype=torch.int32), top_logprobs=torch.tensor([-0.1, -2.5, -4.0]),
    )  # fmt: skip


def batch_of(segments: Sequence[Segment]) -> SegmentBatch:
    """Segments that hold every row ahead of their first image row."""
    return SegmentBatch.of(segments, tuple(int(segment.text.cumprod(0).sum()) for segment in segments))


def restored(
    codec: Codec, tensors: Mapping[str, Tensor], shapes: Sequence[SegmentShape], position: Tensor, text: Tensor
) -> SegmentBatch:
    """What a codec restores from its own tensors, in tensors made for it."""
    target = RowTarget.fresh(shapes, next(iter(tensors.values())).device)
    codec.restore([SegmentToRestore(tensors, shapes, position.numpy(), text.numpy(), target)])
    return SegmentBatch(
        first_layer=shapes[0].first_layer,
        keys=target.keys,
        values=target.values,
        lengths=tuple(shape.rows for shape in shapes),
        image_counts=tuple(shape.images for shape in shapes),
        leads=tuple(shape.lead for shape in shapes),
        position=position,
        text=text,
    )


def code(prefix: Prefix, codec: Codec) -> CodedPrefix:
    """A single prefix, coded."""
    return code_batch(PrefixBatch.of([prefix]), codec).split()[0]


def contained(prefix: Prefix, codec: Codec, key: str = KEY, fingerprint: str = FINGERPRINT) -> bytes:
    """A single prefix in its container."""
    return bytes(write_container(code(prefix, codec), codec.settings, key, fingerprint))


def assert_same(ours: Prefix, truth: Prefix) -> None:
    """Bit for bit."""
    assert_same_frame(ours, truth)
    for a, b in zip(ours.segments, truth.segments, strict=True):
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            # Bytes, not values: NaN and -0.0 must come back too.
            assert torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def assert_same_frame(ours: Prefix, truth: Prefix) -> None:
    """All but the numbers in keys and values."""
    assert (ours.length, ours.lead) == (truth.length, truth.lead)
    assert len(ours.segments) == len(truth.segments)
    for a, b in zip(ours.segments, truth.segments, strict=True):
        assert a.first_layer == b.first_layer
        assert (a.keys.shape, a.values.shape) == (b.keys.shape, b.values.shape)
        assert a.keys.dtype == a.values.dtype == b.keys.dtype
        assert a.position.dtype == torch.int32
        assert torch.equal(a.position, b.position)
        assert torch.equal(a.text, b.text)
    assert [kept.tolist() for kept in ours.kept] == [kept.tolist() for kept in truth.kept]
    assert all(kept.dtype == torch.int32 for kept in ours.kept)
    assert torch.equal(ours.top_ids, truth.top_ids)
    assert torch.equal(ours.top_logprobs, truth.top_logprobs)
