"""The prefixes of a whole batch, packed as the prefill leaves them: what the codecs take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from trio_ray.kv.prefix import Prefix, Segment


@dataclass(frozen=True)
class SegmentBatch:
    """A run of layers of B samples, whose rows lie one sample behind the other, T in all.

    What sizes a tensor stays on the host, so that encoding never waits for the device to learn a shape.

    Attributes:
        first_layer: number of its first layer.
        keys, values: (layers, T, kv_heads, head_dim). Keys are rotated.
        lengths: rows of each sample.
        image_counts: image rows among them.
        leads: text rows ahead of each sample's first image row in the unpruned prompt (`Prefix.lead`).
        position: (T,) int32, ascending within a sample.
        text: (T,) bool.
    """

    first_layer: int
    keys: Tensor
    values: Tensor
    lengths: tuple[int, ...]
    image_counts: tuple[int, ...]
    leads: tuple[int, ...]
    position: Tensor
    text: Tensor

    @classmethod
    def of(cls, segments: Sequence[Segment], leads: tuple[int, ...]) -> SegmentBatch:
        """Segments of several prefixes, of the same layers, as one batch. Waits for the device.

        Args:
            segments: of the prefixes, in order.
            leads: of the prefixes.
        """
        texts = [segment.text for segment in segments]
        return cls(
            first_layer=segments[0].first_layer,
            keys=torch.cat([segment.keys for segment in segments], 1),
            values=torch.cat([segment.values for segment in segments], 1),
            lengths=tuple(segment.rows for segment in segments),
            image_counts=tuple(int((~text).sum()) for text in texts),
            leads=leads,
            position=torch.cat([segment.position for segment in segments]),
            text=torch.cat(texts),
        )

    def finite(self) -> Tensor:
        """(B,) bool: whether nothing in the last layer of a sample is NaN or infinite. What overflows in a layer before
        reaches it through the rows themselves or through attention. Does not wait for the device.
        """
        rows = (self.keys[-1].isfinite() & self.values[-1].isfinite()).flatten(1).all(1)
        return torch.stack([own.all() for own in rows.split(list(self.lengths))])

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """B + 1 row numbers: sample s holds rows `offsets[s] : offsets[s + 1]`."""
        return tuple(accumulate(self.lengths, initial=0))

    def split(self) -> list[Segment]:
        """The samples' segments; their tensors are views."""
        return [
            Segment(
                self.first_layer,
                self.keys[:, start:stop],
                self.values[:, start:stop],
                self.position[start:stop],
                self.text[start:stop],
            )
            for start, stop in zip(self.offsets, self.offsets[1:], strict=False)
        ]


class SegmentShape(NamedTuple):
    """What a container's header says about one sample's segment; the meanings are those of `SegmentBatch`."""

    first_layer: int
    layers: int
    rows: int
    images: int
    lead: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def size(self) -> tuple[int, int, int, int]:
        """(layers, rows, kv_heads, head_dim)."""
        return self.layers, self.rows, self.kv_heads, self.head_dim

    @classmethod
    def of(cls, batch: SegmentBatch) -> list[SegmentShape]:
        """The shapes of a batch's samples."""
        layers, _, heads, dim = batch.keys.shape
        return [
            cls(batch.first_layer, layers, rows, images, lead, heads, dim, batch.keys.dtype)
            for rows, images, lead in zip(batch.lengths, batch.image_counts, batch.leads, strict=True)
        ]


@dataclass(frozen=True)
class PrefixBatch:
    """The pruned prefixes of B samples.

    Attributes:
        lengths: rows of each prompt as it entered the decoder.
        segments: in order, covering all layers; the same runs of layers for every sample.
        kept: per prune point (sum of the samples' counts,) int32, indices into each sample's original image tokens.
        kept_counts: per prune point the samples' counts.
        top_ids: (B, k) int32, the first answer token's most likely values, best first.
        top_logprobs: (B, k) fp32.
    """

    lengths: tuple[int, ...]
    segments: tuple[SegmentBatch, ...]
    kept: tuple[Tensor, ...]
    kept_counts: tuple[tuple[int, ...], ...]
    top_ids: Tensor
    top_logprobs: Tensor

    @classmethod
    def of(cls, prefixes: Sequence[Prefix]) -> PrefixBatch:
        """Prefixes made with one schedule as one batch. Waits for the device."""
        points = range(len(prefixes[0].kept))
        leads = tuple(prefix.lead for prefix in prefixes)
        return cls(
            lengths=tuple(prefix.length for prefix in prefixes),
            segments=tuple(
                SegmentBatch.of([prefix.segments[number] for prefix in prefixes], leads)
                for number in range(len(prefixes[0].segments))
            ),
            kept=tuple(torch.cat([prefix.kept[point] for prefix in prefixes]) for point in points),
            kept_counts=tuple(tuple(len(prefix.kept[point]) for prefix in prefixes) for point in points),
            top_ids=torch.stack([prefix.top_ids for prefix in prefixes]),
            top_logprobs=torch.stack([prefix.top_logprobs for prefix in prefixes]),
        )

    def finite(self) -> Tensor:
        """(B,) bool: whether the prefill of a sample came out in numbers, its most likely first token included."""
        return self.segments[-1].finite() & self.top_logprobs[:, :1].isfinite().all(1)

    def split(self) -> list[Prefix]:
        """The samples' prefixes; their tensors are views."""
        segments = [segment.split() for segment in self.segments]
        kept = [rows.split(list(counts)) for rows, counts in zip(self.kept, self.kept_counts, strict=True)]
        return [
            Prefix(
                length,
                self.segments[0].leads[sample],
                tuple(of_samples[sample] for of_samples in segments),
                tuple(of_samples[sample] for of_samples in kept),
                self.top_ids[sample],
                self.top_logprobs[sample],
            )
            for sample, length in enumerate(self.lengths)
        ]
