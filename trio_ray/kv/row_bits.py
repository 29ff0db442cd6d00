"""All of a prefix but its keys and values as one tensor of bytes: a bit for each thing that may be there or not.

In order: a bit for each row of all segments, 1 for text; for each segment a bit for each position of the prompt, 1
where there is a row; for each prune point a bit for each index below `kept_end`, 1 where it is kept; `top_ids` (int32)
and `top_logprobs` (float32). Bits are lowest first, and each run of them ends with a whole byte. So what is read
ascends within its range whatever the bytes are, and only counts have to be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class RowCounts:
    """What a container's header says about rows.

    Attributes:
        length: rows of the prompt as it entered the decoder.
        rows, texts: of each segment its rows, and the text rows among them.
        kept: of each prune point the kept image tokens.
        kept_end: above all their indices.
        top_k: likely first tokens.
    """

    length: int
    rows: tuple[int, ...]
    texts: tuple[int, ...]
    kept: tuple[int, ...]
    kept_end: int
    top_k: int

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        positions, kept = len(self.rows) * _bytes(self.length), len(self.kept) * _bytes(self.kept_end)
        return _bytes(sum(self.rows)) + positions + kept + 8 * self.top_k


@dataclass(frozen=True)
class RowFields:
    """What the tensor holds.

    Attributes:
        position, text: (T,) int32 and bool, of all segments one behind the other, see `Segment`.
        kept: per prune point (K,) int32, see `Prefix`.
        top_ids, top_logprobs: (top_k,) int32 and float32, see `Prefix`.
    """

    position: NDArray[np.int32]
    text: NDArray[np.bool_]
    kept: tuple[Tensor, ...]
    top_ids: Tensor
    top_logprobs: Tensor


def pack_rows(
    length: int,
    positions: Sequence[Tensor],
    texts: Sequence[Tensor],
    kept: Sequence[Tensor],
    top_ids: Tensor,
    top_logprobs: Tensor,
) -> Tensor:
    """(size,) uint8. `positions` and `texts` are those of the segments; the rest is as in `Prefix`."""
    end = kept_end(kept)
    parts = [
        np.packbits(torch.cat(list(texts)).numpy(), bitorder="little"),
        *(_mark(position, length) for position in positions),
        *(_mark(point, end) for point in kept),
        top_ids.numpy().view(np.uint8),
        top_logprobs.numpy().view(np.uint8),
    ]
    return torch.from_numpy(np.concatenate(parts))


def kept_end(kept: Sequence[Tensor]) -> int:
    """One more than the largest index that a prune point keeps; 0 where none is kept."""
    return max((int(point[-1]) + 1 for point in kept if len(point)), default=0)


def unpack_rows(data: NDArray[np.uint8], counts: RowCounts) -> RowFields:
    """Undo `pack_rows`; copies, so `data` (size,) may change afterwards.

    Raises:
        ValueError: the bits are not as many as the counts say.
    """
    rows = np.array(counts.rows, np.int64)
    at = _bytes(int(rows.sum()))
    text = np.unpackbits(data[:at], count=int(rows.sum()), bitorder="little").view(np.bool_)
    if np.diff(np.concatenate([[0], text.cumsum()])[rows.cumsum()], prepend=0).tolist() != list(counts.texts):
        raise ValueError("the segments have not as many text rows as the header says")
    size = len(rows) * _bytes(counts.length)
    position = _marked(data[at : at + size], counts.length, counts.rows)
    at += size
    size = len(counts.kept) * _bytes(counts.kept_end)
    marked = torch.from_numpy(_marked(data[at : at + size], counts.kept_end, counts.kept))
    kept = tuple(marked.split(counts.kept)) if counts.kept else ()
    top = at + size
    ids = torch.from_numpy(data[top : top + 4 * counts.top_k].copy().view(np.int32))
    logprobs = torch.from_numpy(data[top + 4 * counts.top_k :].copy().view(np.float32))
    return RowFields(position, text, kept, ids, logprobs)


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _mark(numbers: Tensor, end: int) -> NDArray[np.uint8]:
    bits = np.zeros(end, np.bool_)
    bits[numbers.numpy()] = True
    return np.packbits(bits, bitorder="little")


def _marked(data: NDArray[np.uint8], end: int, counts: Sequence[int]) -> NDArray[np.int32]:
    """The numbers below `end` that are marked in each of several runs of bits, one run behind the other."""
    run = 8 * _bytes(end)
    found = np.flatnonzero(np.unpackbits(data, bitorder="little"))
    ends = np.searchsorted(found, np.arange(1, len(counts) + 1) * run)
    if np.diff(ends, prepend=0).tolist() != list(counts):
        raise ValueError("there are not as many positions or kept tokens as the header says")
    numbers = (found - np.repeat(np.arange(len(counts)) * run, counts)).astype(np.int32)
    if len(numbers) and int(numbers.max()) >= end:
        raise ValueError("positions or kept tokens are beyond their range")
    return numbers
