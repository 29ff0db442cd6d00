"""The lossless stage on a GPU: coded tensors leave it as the zstd frames that are stored.

zstd over the bytes that one GPU makes keeps several cores busy, and finds little in packed integers, or in planes of a
float's bytes, but how often each byte occurs. So their Huffman codes are written where they are. What is stored is what
`lossless` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.lossless.blocks import LEAST, Blocks, cut_pieces
from trio_ray.kv.lossless.planes import WHOLE
from trio_ray.kv.lossless.tables_in_use import TablesInUse
from trio_ray.tensors import has_triton, move_together

FRAMES_LEVEL = 1
"""The level of the lossless stage, and the default, at which a GPU may do it: a higher one asks for more than this."""

AT_ONCE = 1 << 29
"""Bytes of tensors that are made into frames together, which bounds the memory for it; a larger tensor is alone. The
kernels are busy for far longer than the host takes to launch them.
"""


class PlainTensor(NamedTuple):
    """A tensor of B samples ahead of the lossless stage.

    Attributes:
        name: tells tensors apart whose bytes are not alike, from batch to batch.
        tensor: (n, ...) of 1, 2 or 4 bytes an element, on the GPU; not empty.
        pieces: of its first dimension, one for each sample.
        runs: of a tensor of bytes, for each sample, the lengths in order of stretches of which each has a table of its
            own; as many of every sample. None makes each plane of bytes a run.
    """

    name: str
    tensor: Tensor
    pieces: Sequence[int]
    runs: Sequence[Sequence[int]] | None = None

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return self.tensor.element_size()

    @property
    def elements(self) -> NDArray[np.int64]:
        """(B,), of each sample."""
        return np.asarray(self.pieces, np.int64) * prod(self.tensor.shape[1:])

    @property
    def stretches(self) -> NDArray[np.int64]:
        """(B, S) bytes of the stretches of each sample."""
        if self.runs is not None:
            return np.asarray(self.runs, np.int64)
        return np.repeat(self.elements[:, None], self.width, 1)


@dataclass(frozen=True)
class Frames:
    """Tensors of B samples behind the lossless stage.

    Attributes:
        names: of the tensors.
        data: flat uint8, by tensor the samples' bytes one behind the other; what follows them means nothing.
        ends: (tensors, B) int64, where each sample's end.
    """

    names: tuple[str, ...]
    data: Tensor
    ends: Tensor

    def tensors(self) -> Iterator[Tensor]:
        """All of its tensors."""
        yield from (self.data, self.ends)

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Frames:
        """The same with each tensor through `copy`."""
        return Frames(self.names, *map(copy, self.tensors()))

    def split(self) -> list[dict[str, Tensor]]:
        """Of each sample the bytes of its tensors as they are stored, which are views; in host memory."""
        ends = self.ends.flatten().tolist()
        stored = [self.data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        samples = self.ends.shape[1]
        return [dict(zip(self.names, stored[sample::samples], strict=True)) for sample in range(samples)]


class FrameMaker:
    """Makes frames on a GPU that has Triton. Holds the Huffman tables of what it has seen; for one thread."""

    def __init__(self) -> None:
        self._tables = TablesInUse()

    def frames(self, tensors: Iterable[PlainTensor]) -> tuple[Frames, ...]:
        """The frames of all tensors of a batch: of all at once, unless they are more than `AT_ONCE` bytes.

        Waits for the device when tables are made: for the first batch, the second, the fourth and so on, and again
        every `BATCHES_A_TABLE`; and where a run comes that there was none of when they were. So another batch may make
        other bytes of the same tensor: what they hold is the same.

        Args:
            tensors: of the same samples. They are taken one after the other as they are needed, so that they need not
                all be in memory at once.
        """
        frames, group, size = [], list[PlainTensor](), 0
        for plain in tensors:
            if group and size + plain.tensor.nbytes > AT_ONCE:
                frames.append(self._group_frames(group))
                group.clear()
                size = 0
            group.append(plain)
            size += plain.tensor.nbytes
        if group:
            frames.append(self._group_frames(group))
        return tuple(frames)

    def _group_frames(self, group: Sequence[PlainTensor]) -> Frames:
        from trio_ray.kv.kernels.frames import count_bytes, make_frames

        device = group[0].tensor.device
        group = sorted(group, key=lambda plain: -plain.width)  # those of one width side by side, bytes last
        stretches = [plain.stretches for plain in group]
        tables = [self._tables.first_of(plain.name, own.shape[1]) for plain, own in zip(group, stretches, strict=True)]
        wide = _Wide.of(group)
        numbers = [*cut_pieces(stretches, tables), *(own.pieces for own in wide)]
        blocks, pieces, *of_wide = move_together([torch.from_numpy(array) for array in numbers], device)
        cut_up = Blocks(blocks, pieces)
        stored = torch.empty(sum(plain.tensor.nbytes for plain in group), dtype=torch.uint8, device=device)
        for own, about in zip(wide, of_wide, strict=True):
            own.split(about, stored)
        _put_bytes(group, stored)
        wanted: dict[str, NDArray[np.bool_]] = {
            plain.name: np.any(own >= LEAST, axis=0) for plain, own in zip(group, stretches, strict=True)
        }
        old = self._tables.old(wanted)
        if old:
            self._tables.make(old, count_bytes(stored, cut_up, self._tables.count).cpu().numpy())
        data, ends = make_frames(stored, cut_up, self._tables.used_for(wanted, device))
        return Frames(tuple(plain.name for plain in group), data, ends.view(len(group), -1))


def frame_maker(settings: CodecSpec, device: torch.device) -> FrameMaker | None:
    """What does a codec's lossless stage on a device; None where the host has to."""
    return FrameMaker() if settings.zstd == FRAMES_LEVEL and has_triton(device) else None


@dataclass(frozen=True)
class _Wide:
    """Tensors of a group whose elements have several bytes, all of them equally many.

    Attributes:
        tensors: their bits as flat integers.
        pieces: (n, 4) what `kernels.frames.split_planes` is told of the samples' pieces.
    """

    tensors: Sequence[Tensor]
    pieces: NDArray[np.int64]

    @classmethod
    def of(cls, group: Sequence[PlainTensor]) -> list[_Wide]:
        """Those of a group, in which wide elements come first."""
        found = []
        ahead = 0
        for width, own in ((width, list(own)) for width, own in groupby(group, lambda plain: plain.width)):
            if width == 1:
                break
            elements = np.concatenate([plain.elements for plain in own])
            begins = elements.cumsum() - elements
            floats = [[plain.tensor.is_floating_point()] * len(plain.pieces) for plain in own]
            pieces = np.stack([begins, elements, ahead + width * begins, np.concatenate(floats).astype(np.int64)], 1)
            found.append(cls([plain.tensor.reshape(-1).view(WHOLE[width]) for plain in own], pieces))
            ahead += width * int(elements.sum())
        return found

    def split(self, pieces: Tensor, stored: Tensor) -> None:
        """Write the planes of their bytes; `pieces` are those above, on the device."""
        from trio_ray.kv.kernels.frames import split_planes

        elements = self.tensors[0] if len(self.tensors) == 1 else torch.cat(list(self.tensors))
        split_planes(elements, pieces, int(self.pieces[:, 1].max()), stored)


def _put_bytes(group: Sequence[PlainTensor], stored: Tensor) -> None:
    """Write the group's tensors of bytes, which come last."""
    tensors = [plain.tensor.reshape(-1).view(torch.uint8) for plain in group if plain.width == 1]
    if tensors:
        torch.cat(tensors, out=stored[len(stored) - sum(map(len, tensors)) :])
