"""Packed rows: the prompts of many samples in one sequence, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from trio_ray.tensors import on_device, to_device

Positions = Literal["compact", "original"]
"""What becomes of the rows that stay: "compact" closes up their positions, as TRIO's authors do; "original" leaves each
row where it was in the unpruned prompt.
"""

ALIGNMENT = 8
"""Numbers of rows are rounded up to a multiple of this, because matrix products are faster then."""


@dataclass(frozen=True)
class PackedRows:
    """What is known about each row of a packed batch of B samples with T rows in all.

    Everything the host needs to size a tensor (`lengths`, `image_counts`) stays on the host, so that no stage has to
    wait for the device to learn a shape.

    Attributes:
        lengths: rows of each sample now.
        image_counts: image rows of each sample now.
        ends: rows of each sample before any pruning; the next token's position (see `position`).
        leads: text rows ahead of each sample's first image row.
        tails: text rows behind each sample's last image row.
        sample: (T,) int64, which sample a row belongs to.
        position: (T,) int64. Either each row's place in the unpruned prompt, or right-aligned: the rows of a sample
            with T_s rows sit at `ends - T_s .. ends - 1`. RoPE depends on differences alone, so attention equals that
            of rows renumbered from 0. In both, the next token has the position `ends` in every layer.
        image_index: (T,) int64, the row's number among its sample's original image tokens; -1 for text.
    """

    lengths: tuple[int, ...]
    image_counts: tuple[int, ...]
    ends: tuple[int, ...]
    leads: tuple[int, ...]
    tails: tuple[int, ...]
    sample: Tensor
    position: Tensor
    image_index: Tensor

    @classmethod
    def pack(cls, image_masks: Sequence[Tensor], device: torch.device | str) -> PackedRows:
        """Lay out prompts before any pruning.

        `image_masks`: per sample (S,) bool on the CPU, True where a row is an image token.
        """
        device = torch.device(device)
        lengths = tuple(len(mask) for mask in image_masks)
        index = torch.cat([torch.where(mask, mask.cumsum(0) - 1, -1) for mask in image_masks])
        sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        position = torch.cat([torch.arange(length) for length in lengths])
        return cls(
            lengths=lengths,
            image_counts=tuple(int(mask.sum()) for mask in image_masks),
            ends=lengths,
            leads=tuple(int((mask.cumsum(0) == 0).sum()) for mask in image_masks),
            tails=tuple(int((mask.flip(0).cumsum(0) == 0).sum()) for mask in image_masks),
            sample=to_device(sample, device),
            position=to_device(position, device),
            image_index=to_device(index, device),
        )

    def renumbered(self, image_index: Tensor) -> PackedRows:
        """The same layout with another `image_index`: (number of image rows,), in the order of the image rows."""
        return replace(self, image_index=self.image_index.index_copy(0, self.image_rows, image_index))

    @property
    def total(self) -> int:
        """T, the number of rows."""
        return sum(self.lengths)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.sample.device

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """B + 1 row numbers: sample s holds rows `offsets[s] : offsets[s + 1]`."""
        return tuple(accumulate(self.lengths, initial=0))

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """(B + 1,) int32 on the device: `offsets` as variable-length attention wants them."""
        return on_device(self.offsets, self.device, torch.int32)

    @cached_property
    def last_rows(self) -> Tensor:
        """(B,) int64, each sample's last row."""
        return on_device(self.offsets[1:], self.device) - 1

    @cached_property
    def tail_rows(self) -> Tensor:
        """(number of rows,) int64, the text rows behind the samples' last image rows, in order."""
        places = [range(stop - tail, stop) for stop, tail in zip(self.offsets[1:], self.tails, strict=True)]
        return on_device([place for of_sample in places for place in of_sample], self.device)

    @cached_property
    def is_image(self) -> Tensor:
        """(T,) bool, True for image rows."""
        return self.image_index >= 0

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """(B, S) row numbers, clamped into range, and the mask of those that are real.

        S is the longest sample's length, rounded up, since matrix products want aligned rows.
        """
        return _pad_runs(self.offsets[:-1], self.lengths, self.device, ALIGNMENT)

    @cached_property
    def unpadded(self) -> Tensor:
        """(T,) int64, where each row stands in `padded`, flattened."""
        width = self.padded[0].shape[1]
        shift = [sample * width - start for sample, start in enumerate(self.offsets[:-1])]
        return torch.arange(self.total, device=self.device) + on_device(shift, self.device)[self.sample]

    @cached_property
    def image_rows(self) -> Tensor:
        """(number of image rows,) int64, the rows that are image tokens, in order."""
        return select_rows(self.is_image, sum(self.image_counts))

    @cached_property
    def padded_images(self) -> tuple[Tensor, Tensor]:
        """(B, N) row numbers of each sample's image rows, clamped into range, and the mask of the real ones; N is the
        most image rows of a sample, rounded up like S of `padded`.
        """
        return _pad_selected(self.image_rows, self.image_counts, ALIGNMENT)

    @cached_property
    def padded_texts(self) -> tuple[Tensor, Tensor]:
        """(B, most text rows) row numbers of each sample's text rows, clamped into range, and the mask of real ones."""
        counts = [length - images for length, images in zip(self.lengths, self.image_counts, strict=True)]
        return _pad_selected(select_rows(~self.is_image, sum(counts)), counts)

    def keep(self, rows: Tensor, image_counts: Sequence[int], positions: Positions = "compact") -> PackedRows:
        """The layout after all but `rows` ((T',) int64 ascending) are dropped; text rows are never dropped.

        Args:
            rows: those that stay.
            image_counts: image rows that each sample keeps: the host knows it, so nothing is read back.
            positions: "compact" closes up the positions, right-aligned; "original" leaves each row's own.
        """
        lengths = tuple(
            length - before + after
            for length, before, after in zip(self.lengths, self.image_counts, image_counts, strict=True)
        )
        sample, position = self.sample[rows], self.position[rows]
        if positions == "compact":
            # The last row keeps its position; the rest close up behind it.
            shift = [end - stop for end, stop in zip(self.ends, accumulate(lengths), strict=True)]
            position = torch.arange(len(rows), device=self.device) + on_device(shift, self.device)[sample]
        return replace(
            self,
            lengths=lengths,
            image_counts=tuple(image_counts),
            sample=sample,
            position=position,
            image_index=self.image_index[rows],
        )


def inverted(mask: Tensor) -> Tensor:
    """`~mask` ((T,) bool), as a tensor of its own.

    On a CPU numpy does it: torch uses all of its threads from 32,768 elements on, and they keep cores busy for a while
    afterwards.
    """
    if mask.device.type == "cpu":
        return torch.from_numpy(~mask.numpy())
    return ~mask


def select_rows(mask: Tensor, count: int) -> Tensor:
    """Row numbers where `mask` ((T,) bool) is True, ascending, (count,) int64; `count` must be their number.

    Unlike `nonzero` it does not wait for the device to tell the size.
    """
    if mask.device.type == "cpu":
        (found,) = mask.numpy().nonzero()
        return torch.from_numpy(found)
    slots = torch.where(mask, mask.cumsum(0) - 1, count)
    rows = torch.empty(count + 1, dtype=torch.int64, device=mask.device)
    return rows.scatter_(0, slots, torch.arange(len(mask), device=mask.device))[:count]


def _pad_selected(selected: Tensor, counts: Sequence[int], multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Consecutive runs of `selected`, of these lengths, as (B, longest) and the mask of entries inside the run."""
    starts = list(accumulate(counts, initial=0))
    slots, real = _pad_runs(starts[:-1], counts, selected.device, multiple)
    return (selected[slots.clamp_max(starts[-1] - 1)] if starts[-1] else slots), real


def _pad_runs(
    starts: Sequence[int], counts: Sequence[int], device: torch.device, multiple: int = 1
) -> tuple[Tensor, Tensor]:
    """(B, max count) `start + 0, start + 1, ...` of each run and the mask of entries inside the run."""
    steps = torch.arange(-(-max(counts, default=0) // multiple) * multiple, device=device)
    start = on_device(tuple(starts), device)[:, None]
    count = on_device(tuple(counts), device)[:, None]
    real = steps < count
    return start + torch.where(real, steps, 0), real
