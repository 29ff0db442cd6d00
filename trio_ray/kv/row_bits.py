"""All of a prefix but its keys and values as one tensor of bytes: a bit for each thing that may be there or not.

In order: a bit for each row of all segments, 1 for text; for each segment a bit for each position of the prompt, 1
where there is a row; for each prune point a bit for each index below `kept_end`, 1 where it is kept; `top_ids` (int32)
and `top_logprobs` (float32). Bits are lowest first, and each run of them ends with a whole byte. So what is read
ascends within its range whatever the bytes are, and only counts have to be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

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
    bits = np.unpackbits(data, bitorder="little").view(np.bool_)
    (marked,) = bits.nonzero()
    segments = len(counts.rows)
    ends = list(accumulate(counts.rows, initial=0))
    rows = ends[-1]
    lengths = [*[counts.length] * segments, *[counts.kept_end] * len(counts.kept)]
    starts = list(accumulate((8 * _bytes(length) for length in lengths), initial=8 * _bytes(rows)))
    # Ahead of each place, how many bits are set: where runs begin, and where what may be set in them ends.
    edges = [*ends, *starts, *(start + length for start, length in zip(starts, lengths, strict=False))]
    found = marked.searchsorted(edges).tolist()
    if tuple(stop - start for start, stop in pairwise(found[: segments + 1])) != counts.texts:
        raise ValueError("the segments have not as many text rows as the header says")
    begins, stops = found[segments + 1 : segments + 1 + len(starts)], found[segments + 1 + len(starts) :]
    if tuple(stop - start for start, stop in pairwise(begins)) != counts.rows + counts.kept:
        raise ValueError("there are not as many positions or kept tokens as the header says")
    if stops != begins[1:]:
        raise ValueError("positions or kept tokens are beyond their range")
    numbers = (marked[begins[0] : begins[-1]] - np.repeat(starts[:-1], counts.rows + counts.kept)).astype(np.int32)
    top = data[len(data) - 8 * counts.top_k :].copy()
    ids, logprobs = torch.from_numpy(top.view(np.int32)), torch.from_numpy(top.view(np.float32))
    return RowFields(
        numbers[:rows],
        bits[:rows],
        tuple(torch.from_numpy(numbers[rows:]).split_with_sizes(counts.kept)) if counts.kept else (),
        ids[: counts.top_k],
        logprobs[counts.top_k :],
    )


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _mark(numbers: Tensor, end: int) -> NDArray[np.uint8]:
    bits = np.zeros(end, np.bool_)
    bits[numbers.numpy()] = True
    return np.packbits(bits, bitorder="little")
