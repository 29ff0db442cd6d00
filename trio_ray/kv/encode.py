"""From the prefixes of a batch on the device to coded prefixes on the host, ready for their containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trio_ray.kv.batch import PrefixBatch, SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodedSegments, stored_name
from trio_ray.kv.lossless.frames import FrameMaker, Frames, PlainTensor

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""(shape, dtype) -> a tensor in host memory, contents undefined."""


def new_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An `Allocate`: for each tensor memory of its own."""
    return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True)
class CodedPrefix:
    """One sample's prefix as its container takes it, in host memory.

    Attributes:
        length: rows of the prompt as it entered the decoder.
        shapes: of the segments as they are stored.
        segments: per segment the codec's tensors by name; none where keys and values are not stored.
        positions, texts: per segment (rows,) int32 and bool, see `Segment`.
        kept: per prune point (K,) int32, see `Prefix`.
        top_ids, top_logprobs: (k,) int32 and fp32, see `Prefix`.
        frames: by `stored_name`, in the place of the codec's tensors, those that are through the lossless stage.
    """

    length: int
    shapes: tuple[SegmentShape, ...]
    segments: tuple[dict[str, Tensor], ...]
    positions: tuple[Tensor, ...]
    texts: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    top_ids: Tensor
    top_logprobs: Tensor
    frames: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CodedBatch:
    """A coded `PrefixBatch`; `shapes` holds per segment those of the B samples, the rest is as there.

    `frames` holds, by `stored_name` and in the place of the segments' tensors, those that have been through the
    lossless stage on the device.
    """

    lengths: tuple[int, ...]
    shapes: tuple[tuple[SegmentShape, ...], ...]
    segments: tuple[CodedSegments, ...]
    positions: tuple[Tensor, ...]
    texts: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    kept_counts: tuple[tuple[int, ...], ...]
    top_ids: Tensor
    top_logprobs: Tensor
    frames: tuple[Frames, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        """All of its tensors."""
        for segment in self.segments:
            yield from segment.tensors.values()
        for frames in self.frames:
            yield from frames.tensors()
        yield from (*self.positions, *self.texts, *self.kept, self.top_ids, self.top_logprobs)

    def on_host(self, allocate: Allocate) -> CodedBatch:
        """The same in host memory from `allocate`, one copy a tensor.

        The copies from a GPU are only queued (on the current stream, and truly so where the memory is pinned): nothing
        may be read before the stream has come past them.
        """

        def copy(tensor: Tensor) -> Tensor:
            return allocate(tuple(tensor.shape), tensor.dtype).copy_(tensor, non_blocking=True)

        def copies(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(copy(tensor) for tensor in tensors)

        return replace(
            self,
            segments=tuple(
                replace(segment, tensors={name: copy(tensor) for name, tensor in segment.tensors.items()})
                for segment in self.segments
            ),
            positions=copies(self.positions),
            texts=copies(self.texts),
            kept=copies(self.kept),
            top_ids=copy(self.top_ids),
            top_logprobs=copy(self.top_logprobs),
            frames=tuple(frames.copied(copy) for frames in self.frames),
        )

    def split(self) -> list[CodedPrefix]:
        """The samples' prefixes; their tensors are views."""
        segments = [segment.split() for segment in self.segments]
        frames = [group.split() for group in self.frames]
        rows = [[shape.rows for shape in shapes] for shapes in self.shapes]
        positions = [tensor.split(counts) for tensor, counts in zip(self.positions, rows, strict=True)]
        texts = [tensor.split(counts) for tensor, counts in zip(self.texts, rows, strict=True)]
        kept = [tensor.split(list(counts)) for tensor, counts in zip(self.kept, self.kept_counts, strict=True)]
        return [
            CodedPrefix(
                length=length,
                shapes=tuple(of_samples[sample] for of_samples in self.shapes),
                segments=tuple(of_samples[sample] for of_samples in segments),
                positions=tuple(of_samples[sample] for of_samples in positions),
                texts=tuple(of_samples[sample] for of_samples in texts),
                kept=tuple(of_samples[sample] for of_samples in kept),
                top_ids=self.top_ids[sample],
                top_logprobs=self.top_logprobs[sample],
                frames={name: own for of_samples in frames for name, own in of_samples[sample].items()},
            )
            for sample, length in enumerate(self.lengths)
        ]


@torch.no_grad()
def code_batch(batch: PrefixBatch, codec: Codec, maker: FrameMaker | None = None) -> CodedBatch:
    """Code a batch on the device that it is on, without waiting for it but where `FrameMaker` does.

    Args:
        batch: to be coded.
        codec: codes it.
        maker: does the lossless stage on the device, where it can be done there; None leaves it to the host.

    Raises:
        CodecError: the codec cannot code keys and values of this shape.
    """
    if maker is None:
        return replace(frame_of(batch), segments=tuple(codec.encode(segment) for segment in batch.segments))
    empty: list[CodedSegments] = []
    frames = maker.frames(_encoded(batch, codec, empty))
    return replace(frame_of(batch), segments=tuple(empty), frames=frames)


def _encoded(batch: PrefixBatch, codec: Codec, empty: list[CodedSegments]) -> Iterator[PlainTensor]:
    """Encode a segment when its first tensor is asked for; `empty` gets its tensors that hold nothing."""
    for number, segment in enumerate(batch.segments):
        coded = codec.encode(segment)
        left = {name: tensor for name, tensor in coded.tensors.items() if not tensor.numel()}
        empty.append(replace(coded, tensors=left))
        yield from plain_tensors(number, coded)
        del coded  # it would take memory while the next segment is encoded


def plain_tensors(number: int, coded: CodedSegments) -> Iterator[PlainTensor]:
    """What the lossless stage takes of the segment with this number: its tensors that hold anything."""
    for name, tensor in coded.tensors.items():
        if tensor.numel():
            yield PlainTensor(stored_name(number, name), tensor, coded.pieces[name], coded.runs.get(name))


def frame_of(batch: PrefixBatch) -> CodedBatch:
    """All of a batch but its keys and values."""
    return CodedBatch(
        lengths=batch.lengths,
        shapes=tuple(tuple(SegmentShape.of(segment)) for segment in batch.segments),
        segments=(),
        positions=tuple(segment.position for segment in batch.segments),
        texts=tuple(segment.text for segment in batch.segments),
        kept=batch.kept,
        kept_counts=batch.kept_counts,
        top_ids=batch.top_ids,
        top_logprobs=batch.top_logprobs,
    )
