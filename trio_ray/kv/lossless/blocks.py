"""The blocks of the frames that a GPU writes and reads: where they are, and the numbers of zstd's format.

Section numbers are those of RFC 8878 (https://www.rfc-editor.org/rfc/rfc8878).
"""

from __future__ import annotations

from collections.abc import Sequence
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

LEAST = 256
"""Shorter stretches are not worth a table's description."""

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
    """What many pieces of bytes are cut into; a piece becomes a frame. Both are int64, and rows of four numbers keep
    their addresses aligned, however many there are.

    Attributes:
        blocks: (N, 4) of each block: where it begins in the bytes, its length (up to 128 KiB), the number of the
            Huffman table that it is coded by if that makes it smaller (-1 for none), and the number of its piece.
        pieces: (P, 4) of each piece: its first block and the one behind its last, where it begins in the bytes, and its
            length. They lie one behind the other.
    """

    blocks: Tensor
    pieces: Tensor


def cut_pieces(
    stretches: Sequence[NDArray[np.int64]], first_tables: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The arrays of `Blocks` for tensors that lie one behind the other, each sample after sample.

    Args:
        stretches: of each tensor, (B, S), the bytes of the samples' stretches; the S-th has the S-th table from the
            tensor's first on.
        first_tables: by tensor.
    """
    flat = np.concatenate([own.reshape(-1) for own in stretches])
    table = np.concatenate(
        [np.tile(first + np.arange(own.shape[1]), len(own)) for own, first in zip(stretches, first_tables, strict=True)]
    )
    sizes = np.concatenate([own.sum(1) for own in stretches])
    runs_of_piece = np.concatenate([np.full(len(own), own.shape[1]) for own in stretches])
    piece_of_run = np.repeat(np.arange(len(sizes)), runs_of_piece)
    run, ahead, length = cut(flat)
    piece = piece_of_run[run]
    start = (flat.cumsum() - flat)[run] + ahead
    stop = np.bincount(piece, minlength=len(sizes)).cumsum()
    return (
        np.stack([start, length, np.where(flat[run] < LEAST, -1, table[run]), piece], 1),
        np.stack([np.concatenate([[0], stop[:-1]]), stop, sizes.cumsum() - sizes, sizes], 1),
    )


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
