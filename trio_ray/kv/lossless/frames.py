"""The lossless stage on a GPU: coded tensors leave it as the zstd frames that are stored.

zstd over the bytes that one GPU makes keeps several cores busy, and finds little in packed integers, or in planes of a
float's bytes, but how often each byte occurs. So their Huffman codes are written where they are. What is stored is what
`lossless` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.codecs.spec import CodecSpec
from trio_ray.kv.lossless.blocks import Blocks, DeviceTables, cut
from trio_ray.kv.lossless.huffman import MAX_DESCRIPTION, HuffmanTable
from trio_ray.kv.lossless.planes import split_planes
from trio_ray.tensors import has_triton, to_device

LEAST = 256
"""Shorter stretches are not worth a table's description."""

FRAMES_LEVEL = 1
"""The level of the lossless stage, and the default, at which a GPU may do it: a higher one asks for more than this."""

BATCHES_A_TABLE = 256
"""So many batches, at most, are coded by the tables of one, at the beginning fewer. Its bytes are waited for, and a
core works on each table for some milliseconds: too much to do for every batch, little enough to follow a corpus.
"""


@dataclass(frozen=True)
class Frames:
    """A tensor of B samples behind the lossless stage.

    Attributes:
        data: flat uint8, the samples' bytes one behind the other; what follows them means nothing.
        ends: (B,) int64, where each sample's end.
    """

    data: Tensor
    ends: Tensor

    def tensors(self) -> Iterator[Tensor]:
        """All of its tensors."""
        yield from (self.data, self.ends)

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Frames:
        """The same with each tensor through `copy`."""
        return Frames(*map(copy, self.tensors()))

    def split(self) -> list[Tensor]:
        """Each sample's bytes as they are stored, which are views; in host memory."""
        ends = self.ends.tolist()
        return [self.data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class FrameMaker:
    """Makes frames on a GPU that has Triton. Holds the Huffman tables of what it has seen; for one thread."""

    def __init__(self) -> None:
        self._tables: dict[str, _TablesInUse] = {}

    def frames(
        self, name: str, tensor: Tensor, pieces: Sequence[int], runs: Sequence[Sequence[int]] | None = None
    ) -> Frames:
        """The frames of a tensor.

        Waits for the device when tables are made: for the first batch, the second, the fourth and so on, and again
        every `BATCHES_A_TABLE`; and where a run comes that there was none of when they were. So another batch may make
        other bytes of the same tensor: what they hold is the same.

        Args:
            name: tells tensors apart whose bytes are not alike.
            tensor: (n, ...) of any type, on the GPU.
            pieces: of its first dimension, one for each sample.
            runs: of a tensor of bytes, for each sample, the lengths in order of stretches of which each has a table of
                its own; as many of every sample. None makes each plane of bytes a run.
        """
        from trio_ray.kv.kernels.frames import count_bytes, make_frames

        size, width, device = tensor.element_size(), prod(tensor.shape[1:]), tensor.device
        stored = torch.cat([split_planes(piece) for piece in tensor.split(list(pieces))])
        lengths = np.asarray(runs or [[rows * width] * size for rows in pieces], np.int64)
        blocks = cut_samples(lengths, device)
        wanted: NDArray[np.bool_] = np.any(lengths >= LEAST, axis=0)
        used = self._tables.get(name)
        if used is None or used.is_old or (wanted & ~used.counted).any():
            counts = count_bytes(stored, blocks, len(wanted)).cpu().numpy()
            batches = used.batches if used else 0
            used = self._tables[name] = _TablesInUse(device_tables(counts, device), wanted, batches)
        used.batches += 1
        return Frames(*make_frames(stored, blocks, used.tables))


def frame_maker(settings: CodecSpec, device: torch.device) -> FrameMaker | None:
    """What does a codec's lossless stage on a device; None where the host has to."""
    return FrameMaker() if settings.zstd == FRAMES_LEVEL and has_triton(device) else None


@dataclass
class _TablesInUse:
    """Tables of a tensor.

    Attributes:
        tables: the latest.
        counted: (S,) bool, for which of them there were bytes to count.
        batches: how many the tensor has had.
    """

    tables: DeviceTables
    counted: NDArray[np.bool_]
    batches: int

    @property
    def is_old(self) -> bool:
        """Whether the next batch is one to make tables from: a power of two, or `BATCHES_A_TABLE` once more."""
        following = self.batches + 1
        return following & (following - 1) == 0 or following % BATCHES_A_TABLE == 0


def cut_samples(lengths: NDArray[np.int64], device: torch.device) -> Blocks:
    """Blocks of the stretches of samples that lie one behind the other.

    Args:
        lengths: (samples, S), the stretches of each; the S-th has the S-th table.
        device: where the blocks are described.
    """
    samples, tables = lengths.shape
    flat = lengths.reshape(-1)
    run, ahead, length = cut(flat)
    blocks_of_sample = np.bincount(run // tables, minlength=samples)
    pieces = [
        (flat.cumsum() - flat)[run] + ahead,
        length,
        np.where(flat[run] < LEAST, -1, run % tables),
        run // tables,
        np.concatenate([[0], blocks_of_sample.cumsum()]),
        lengths.sum(1),
    ]
    moved = to_device(torch.from_numpy(np.concatenate(pieces)), device)
    return Blocks(*moved.split([len(piece) for piece in pieces]))


def device_tables(counts: NDArray[np.int64], device: torch.device) -> DeviceTables:
    """Tables for bytes that occur so often, (S, 256). Every byte gets a code: the next batch may have it."""
    codes = np.zeros((len(counts), 256), np.int32)
    descriptions = np.zeros((len(counts), MAX_DESCRIPTION), np.uint8)
    described = np.zeros(len(counts), np.int64)
    for number, own in enumerate(counts):
        table = HuffmanTable.of(own + 1)
        if table is not None:
            codes[number] = table.codes + (table.lengths.astype(np.int32) << 16)
            described[number] = len(table.description)
            descriptions[number, : described[number]] = np.frombuffer(table.description, np.uint8)
    return DeviceTables(*(to_device(torch.from_numpy(array), device) for array in (codes, descriptions, described)))
