"""Bytes of a sample in the cache, for every level and codec: really encoded, or computed from shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import fmean
from typing import Literal

import torch
from transformers import LlavaNextConfig

from trio_ray.config import JobConfig
from trio_ray.estimate.frames import frame_of_sample
from trio_ray.estimate.made_up_states import Geometry, prefix_batch
from trio_ray.estimate.times import retained_rows
from trio_ray.estimate.workload import Workload
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import CodedPrefix, code_batch
from trio_ray.method.method import Method
from trio_ray.source.shards import evenly
from trio_ray.store.tar_members import member_header, padding

Level = Literal["kv", "embeds", "indices"]

TENSOR_ENTRY_BYTES = 80
"""Bytes of a safetensors header for one tensor: its name, type, shape and offsets."""

EMBEDS_HEADER_BYTES = 400
"""Bytes of the headers of a file of embeddings: its own one, and that of safetensors."""

SAMPLE_HASH = "0" * 64
"""Takes the place of the cache's identity hash."""

FRAMES_MADE = 8
FACTOR_LAYERS = 10
"""Layers of the made-up states that zstd's factor is measured on."""


@dataclass(frozen=True)
class MemberSize:
    """What is stored of a sample beside its row.

    Attributes:
        level: `kv`, `embeds` or `indices`.
        codec: its name as it was asked for; None where no keys and values are stored.
        bytes: of its member of the tar, with the tar's header and padding, mean.
        zstd_factor: bytes behind zstd over bytes before it; 1 where there is no zstd stage.
        source: `encoded` really, `computed`, or where there is nothing to compute from `assumed`.
    """

    level: Level
    codec: str | None
    bytes: float
    zstd_factor: float
    source: Literal["encoded", "computed", "assumed"]


@dataclass(frozen=True)
class SizeModel:
    """Computes sizes from shapes.

    Attributes:
        config: the job.
        model_config: the model's.
        method: which tokens are kept.
        dtype: of keys, values and embeddings.
        workload: the drawn samples.
    """

    config: JobConfig
    model_config: LlavaNextConfig
    method: Method
    dtype: torch.dtype
    workload: Workload

    def frames(self, count: int = FRAMES_MADE) -> list[CodedPrefix]:
        """Prefixes of some of the samples, without keys and values."""
        return [
            frame_of_sample(sample, number, self.config, self.model_config, self.method, self.dtype)
            for number, sample in enumerate(evenly(self.workload.samples, count))
        ]

    def kv(self, name: str, codec: Codec) -> MemberSize:
        """Size of a prefix: the codec's layout for its shapes, times the factor that zstd reaches on made-up states of
        the same geometry (`trio_ray.estimate.made_up_states`), plus the container around it.
        """
        factor = zstd_factor(codec, self._geometry(), self.dtype)
        frames = self.frames(len(self.workload.samples))
        layouts = [codec.layout_bytes(frame.shapes) for frame in frames]
        tensors = [sum(len(codec.layout(shape)) for shape in frame.shapes) for frame in frames]
        around = fmean(
            len(write_container(frame, codec.settings, sample.key, SAMPLE_HASH))
            for frame, sample in zip(frames[:FRAMES_MADE], self.workload.samples, strict=False)
        )
        data = fmean(layouts) * factor + fmean(tensors) * TENSOR_ENTRY_BYTES + around
        return MemberSize("kv", name, in_tar(data, "key"), factor, "computed")

    def plain_bytes(self) -> float:
        """Of a sample's keys and values in 16 bit, mean."""
        shapes = [shape for frame in self.frames(len(self.workload.samples)) for shape in frame.shapes]
        return sum(2 * 2 * prod(shape.size) for shape in shapes) / len(self.workload.samples)

    def assumed(self, name: str, ratio: float) -> MemberSize:
        """Size of a prefix in a container that is `ratio` times smaller than its keys and values in 16 bit."""
        return MemberSize("kv", name, in_tar(self.plain_bytes() / ratio, "key"), 1.0, "assumed")

    def embeds(self) -> MemberSize:
        """Size of the retained input embeddings: a row each, its token id, its position and whether it is
        text (int32, int32, uint8).
        """
        width = self.model_config.get_text_config().hidden_size
        rows = fmean(retained_rows(sample, self.method.schedule) for sample in self.workload.samples)
        data = rows * (width * self.dtype.itemsize + 9) + EMBEDS_HEADER_BYTES
        return MemberSize("embeds", None, in_tar(data, "key"), 1.0, "computed")

    def _geometry(self) -> Geometry:
        text = self.model_config.get_text_config()
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        tokens = round(self.workload.image_tokens)
        texts = max(2, round(self.workload.rows) - tokens)
        lead = min(self.workload.samples[0].input_ids.index(self.model_config.image_token_id), texts - 1)
        return Geometry(FACTOR_LAYERS, text.num_key_value_heads, head_dim, tokens, tokens, lead, texts - lead)


def encoded_size(name: str, prefixes: Sequence[CodedPrefix], codec: Codec, keys: Sequence[str]) -> MemberSize:
    """Size of prefixes that have really been coded, in their containers."""
    settings, named = codec.settings, zip(prefixes, keys, strict=True)
    data = [len(write_container(coded, settings, key, SAMPLE_HASH)) for coded, key in named]
    factor = fmean(data) / fmean(codec.layout_bytes(coded.shapes) for coded in prefixes)
    member = fmean(in_tar(size, key) for size, key in zip(data, keys, strict=True))
    return MemberSize("kv", name, member, factor if codec.settings.zstd else 1.0, "encoded")


TRANSFORM_FACTOR = 0.5
"""What zstd makes of a transform's packed symbols: 0.47 with LLaVA-NeXT-7B's shapes and random weights, 0.49 with the
bundled model, and a little more where a GPU makes the frames.
"""


def zstd_factor(codec: Codec, geometry: Geometry, dtype: torch.dtype) -> float:
    """What zstd makes of coded states, as a factor: measured on made-up ones of a few layers.

    1 without a zstd stage; `TRANSFORM_FACTOR` for a calibrated codec, whose basis fits real states alone.
    """
    if not codec.settings.zstd:
        return 1.0
    if codec.settings.name == "transform":
        return TRANSFORM_FACTOR
    batch = prefix_batch(geometry, 1, torch.device("cpu"))
    coded = code_batch(_as_dtype(batch, dtype), codec).split()[0]
    bare = replace(coded, segments=())
    size = len(write_container(coded, codec.settings, "", "")) - len(write_container(bare, codec.settings, "", ""))
    return size / codec.layout_bytes(coded.shapes)


def in_tar(size: float, key: str) -> float:
    """Bytes that a member of `size` bytes takes in its tar; the padding of a size that is a mean is half a block."""
    head = len(member_header(key, "kv", round(size)))
    return size + head + (padding(int(size)) if size == int(size) else padding(1) / 2)


def _as_dtype(batch: PrefixBatch, dtype: torch.dtype) -> PrefixBatch:
    """Real states have a whole mantissa of noise in a longer type: so have these, from noise below bfloat16's grain."""
    segments = []
    for segment in batch.segments:
        keys, values = (_widened(tensor, dtype) for tensor in (segment.keys, segment.values))
        segments.append(replace(segment, keys=keys, values=values))
    return replace(batch, segments=tuple(segments))


def _widened(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.bfloat16:
        return tensor
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(tensor.shape, generator=generator) - 0.5
    return (tensor.float() * (1 + noise * torch.finfo(torch.bfloat16).eps)).to(dtype)
