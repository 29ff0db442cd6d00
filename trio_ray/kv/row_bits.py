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
    def bits_size(self) -> int:
        """Bytes of the tensor that hold bits: all but the likely tokens."""
        positions, kept = len(self.rows) * _bytes(self.length), len(self.kept) * _bytes(self.kept_end)
        return _bytes(sum(self.rows)) + positions + kept

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return self.bits_size + 8 * self.top_k

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Runs of bits in order, each with how many of them are set: of the rows of each segment those of text; the
        positions of each segment; the kept tokens of each prune point; and the bits that fill a byte up behind them.
        """
        runs = [*zip(self.rows, self.texts, strict=True), (-sum(self.rows) % 8, 0)]
        for length, numbers in ((self.length, self.rows), (self.kept_end, self.kept)):
            for number in numbers:
                runs += ((length, number), (-length % 8, 0))
        return runs


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


def unpack_rows(data: Sequence[NDArray[np.uint8]], counts: Sequence[RowCounts]) -> list[RowFields | None]:
    """Undo `pack_rows` for many samples at once; copies, so that the bytes may change afterwards.

    Args:
        data: of each sample (size,) uint8.
        counts: of each sample.

    Returns:
        By sample its fields, which are views of arrays that all samples share. None where the bits contradict the
        counts: too many or too few are set, or one is set where none may be.
    """
    if not data:
        return []
    bits_end = [own.bits_size for own in counts]
    bits = np.unpackbits(
        np.concatenate([own[:end] for own, end in zip(data, bits_end, strict=True)]), bitorder="little"
    ).view(np.bool_)
    top = np.concatenate([own[end:] for own, end in zip(data, bits_end, strict=True)]).view(np.int32)
    (marked,) = bits.nonzero()
    runs = [own.runs for own in counts]
    lengths = np.array([length for own in runs for length, _ in own])
    starts = lengths.cumsum() - lengths
    ahead = marked.searchsorted(np.append(starts, len(bits)))
    found = np.diff(ahead)
    is_other = found != [number for own in runs for _, number in own]
    numbers = (marked - starts.repeat(found)).astype(np.int32)
    shared = _Shared(bits, numbers, torch.from_numpy(numbers), torch.from_numpy(top))

    fields: list[RowFields | None] = []
    run = first_top = 0
    first_bits, first_numbers = starts.tolist(), ahead.tolist()
    for own, one in zip(runs, counts, strict=True):
        is_sound = not is_other[run : run + len(own)].any()
        position = first_numbers[run + len(one.rows) + 1]
        fields.append(shared.fields(one, first_bits[run], position, first_top) if is_sound else None)
        run, first_top = run + len(own), first_top + 2 * one.top_k
    return fields


@dataclass(frozen=True)
class _Shared:
    """What the tensors of many samples hold.

    Attributes:
        bits: of all samples.
        numbers, tensor: of each bit that is set, in order, which one of its run it is; the same memory twice.
        top: `top_ids` and the bits of `top_logprobs` of each sample.
    """

    bits: NDArray[np.bool_]
    numbers: NDArray[np.int32]
    tensor: Tensor
    top: Tensor

    def fields(self, counts: RowCounts, bit: int, number: int, top: int) -> RowFields:
        """A sample's: its first bit, where the numbers of its positions begin, and its first likely token."""
        rows = sum(counts.rows)
        kept, logprobs = number + rows, top + counts.top_k
        return RowFields(
            self.numbers[number:kept],
            self.bits[bit : bit + rows],
            tuple(self.tensor[kept : kept + sum(counts.kept)].split_with_sizes(counts.kept)) if counts.kept else (),
            self.top[top:logprobs],
            self.top[logprobs : logprobs + counts.top_k].view(torch.float32),
        )


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _mark(numbers: Tensor, end: int) -> NDArray[np.uint8]:
    bits = np.zeros(end, np.bool_)
    bits[numbers.numpy()] = True
    return np.packbits(bits, bitorder="little")
