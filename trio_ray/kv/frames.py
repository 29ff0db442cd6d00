"""The lossless stage on a GPU: coded tensors leave it as the zstd frames that are stored.

zstd over the bytes that one GPU makes keeps several cores busy, and finds little in packed integers, or in planes of a
float's bytes, but how often each byte occurs. So their Huffman codes are written where they are. What is stored is what
`lossless` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.huffman import MAX_DESCRIPTION, HuffmanTable
from trio_ray.method.fusion import to_device

BLOCK = 1 << 17
"""Most bytes of a block of a frame (RFC 8878, 3.1.1.2.4)."""

LEAST = 256
"""Shorter stretches are not worth a table's description."""

FRAMES_LEVEL = 1
"""The level of the lossless stage, and the default, at which a GPU may do it: a higher one asks for more than this."""

BATCHES_A_TABLE = 256
"""So many batches are coded by the tables of one. Its bytes are waited for, and a core works on each table for some
milliseconds: too much to do for every batch, little enough to follow a corpus that changes.
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

    def split(self) -> list[Tensor]:
        """Each sample's bytes as they are stored, which are views; in host memory."""
        ends = self.ends.tolist()
        return [self.data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Blocks:
    """What the bytes of B samples are cut into. All are int64 tensors on the device.

    Attributes:
        start, length: (n,) of each block, in the stored bytes; up to 128 KiB.
        table: (n,) number of the Huffman table that it is coded by, if that makes it smaller; -1 for none.
        sample: (n,) whose it is.
        first: (B + 1,) number of the first block of each sample, and n.
        pieces: (B,) bytes of each sample, which lie one behind the other.
    """

    start: Tensor
    length: Tensor
    table: Tensor
    sample: Tensor
    first: Tensor
    pieces: Tensor


@dataclass(frozen=True)
class DeviceTables:
    """S Huffman tables on a device.

    Attributes:
        codes: (S, 256) int32, code and, from bit 16 on, its length.
        descriptions: (S, 128) uint8.
        described: (S,) int64, bytes of each description; 0 where there is no table.
    """

    codes: Tensor
    descriptions: Tensor
    described: Tensor


class FrameMaker:
    """Makes frames on a GPU that has Triton. Holds the Huffman tables of what it has seen; for one thread."""

    def __init__(self) -> None:
        self._tables: dict[str, _TablesInUse] = {}

    def frames(
        self, name: str, tensor: Tensor, pieces: Sequence[int], runs: Sequence[Sequence[int]] | None = None
    ) -> Frames:
        """The frames of a tensor.

        Waits for the device when tables are made: for the first batch, and again every `BATCHES_A_TABLE`.

        Args:
            name: tells tensors apart whose bytes are not alike.
            tensor: (n, ...) of any type, on the GPU.
            pieces: of its first dimension, one for each sample.
            runs: of a tensor of bytes, for each sample, the lengths in order of stretches of which each has a table of
                its own; as many of every sample. None makes each plane of bytes a run.
        """
        from trio_ray.kv.frame_kernels import count_bytes, make_frames

        plain = tensor.reshape(-1).view(torch.uint8)
        size, width = tensor.element_size(), prod(tensor.shape[1:])
        stored = plain if size == 1 else _planes(plain, size, [rows * width for rows in pieces])
        blocks = cut(runs or [[rows * width] * size for rows in pieces], plain.device)
        tables = len(runs[0]) if runs else size
        used = self._tables.get(name)
        if used is None or used.batches == BATCHES_A_TABLE or len(used.tables.described) != tables:
            counts = count_bytes(stored, blocks, tables).cpu().numpy()
            used = self._tables[name] = _TablesInUse(device_tables(counts, plain.device))
        used.batches += 1
        return Frames(*make_frames(stored, plain, blocks, used.tables))


@dataclass
class _TablesInUse:
    """And for how many batches."""

    tables: DeviceTables
    batches: int = 0


def _planes(plain: Tensor, size: int, pieces: Sequence[int]) -> Tensor:
    """Bytes in the order of the lossless stage: of each piece the lowest of all elements, then the next.

    Args:
        plain: flat uint8.
        size: bytes of an element.
        pieces: elements of each.
    """
    return torch.cat([own.T.reshape(-1) for own in plain.view(-1, size).split(list(pieces))])


def cut(runs: Sequence[Sequence[int]], device: torch.device) -> Blocks:
    """Blocks of up to 128 KiB out of stretches of bytes; those of one place in `runs` have the table of this number.

    Args:
        runs: see `FrameMaker.frames`.
        device: where the blocks are described.
    """
    lengths = np.asarray(runs, np.int64)
    samples, tables = lengths.shape
    flat = lengths.reshape(-1)
    numbers = -(-flat // BLOCK)
    total = int(numbers.sum())
    run = np.repeat(np.arange(len(flat)), numbers)
    ahead = (np.arange(total) - np.repeat(numbers.cumsum() - numbers, numbers)) * BLOCK
    pieces = [
        (flat.cumsum() - flat)[run] + ahead,
        np.minimum(flat[run] - ahead, BLOCK),
        np.where(flat[run] < LEAST, -1, run % tables),
        run // tables,
        np.concatenate([[0], numbers.reshape(samples, tables).sum(1).cumsum()]),
        lengths.sum(1),
    ]
    moved = to_device(torch.from_numpy(np.concatenate(pieces)), device)
    return Blocks(*moved.split([len(piece) for piece in pieces]))


def device_tables(counts: NDArray[np.int32], device: torch.device) -> DeviceTables:
    """Tables for bytes that occur so often, (S, 256). Every byte gets a code: the next batch may have it."""
    codes = np.zeros((len(counts), 256), np.int32)
    descriptions = np.zeros((len(counts), MAX_DESCRIPTION), np.uint8)
    described = np.zeros(len(counts), np.int64)
    for number, own in enumerate(counts):
        table = HuffmanTable.of(own.astype(np.int64) + 1)
        if table is not None:
            codes[number] = table.codes + (table.lengths.astype(np.int32) << 16)
            described[number] = len(table.description)
            descriptions[number, : described[number]] = np.frombuffer(table.description, np.uint8)
    return DeviceTables(*(to_device(torch.from_numpy(array), device) for array in (codes, descriptions, described)))
