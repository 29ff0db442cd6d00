"""The blocks of the frames that a GPU writes and reads: where they are, and the numbers of zstd's format.

Section numbers are those of RFC 8878 (https://www.rfc-editor.org/rfc/rfc8878).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 17
"""Most bytes that a block of a frame holds (3.1.1.2.4)."""
STREAMS = 4
"""Streams of codes in a block, each of a quarter of its bytes (4.2.2)."""

FRAME_HEADER, MOST_CONTENT = 9, (1 << 32) - 1
"""Magic number, descriptor and four bytes of content size (3.1.1.1)."""
FRAME_MAGIC = 0xFD2FB528 | 0xA0 << 32
"""With the descriptor: a single segment with four bytes of size, without checksum or dictionary."""
BLOCK_HEADER = 3
LITERALS_HEADER, STREAM_SIZES, SEQUENCES = 5, 6, 1
"""What a coded block has beside codes and their description (3.1.1.3): the sizes of three streams; no sequences."""

ABSENT, RAW, CODED = 0, 1, 2
"""What a block is: not known, bytes as they are, or Huffman codes."""


class Cut(NamedTuple):
    """Stretches of bytes cut into blocks; all (n,) int64.

    Attributes:
        run: the number of the stretch that a block belongs to.
        ahead: where in the stretch the block begins.
        length: bytes of the block.
    """

    run: NDArray[np.int64]
    ahead: NDArray[np.int64]
    length: NDArray[np.int64]


def cut(lengths: NDArray[np.int64]) -> Cut:
    """Stretches of these lengths, (S,), in blocks of up to `BLOCK` bytes; none crosses from one to the next."""
    numbers = -(-lengths // BLOCK)
    run = np.repeat(np.arange(len(lengths)), numbers)
    ahead = (np.arange(len(run)) - np.repeat(numbers.cumsum() - numbers, numbers)) * BLOCK
    return Cut(run, ahead, np.minimum(lengths[run] - ahead, BLOCK))


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


@dataclass(frozen=True)
class StoredBlocks:
    """N blocks of F frames, and of tensors that are stored as they are, on a GPU. All int64.

    Attributes:
        frames: (F, 6): where a frame begins in the stored bytes, where it ends, the bytes that it holds, its sample,
            its first block and the one behind its last.
        mode: (N,) `RAW` for a block of bytes stored without a frame; `ABSENT` where a frame has yet to be read.
        place: (N,) where the bytes of a `RAW` block begin in the stored bytes; room for those of the others.
        start, length: (N,) where the contents of a block go, and their bytes.
        sample: (N,) whose it is.
        leaders: (N, 2) two blocks that may have the same codes: the first of the same stretch, and that of the first
            sample.
        longest: bytes of the longest block.
    """

    frames: Tensor
    mode: Tensor
    place: Tensor
    start: Tensor
    length: Tensor
    sample: Tensor
    leaders: Tensor
    longest: int
