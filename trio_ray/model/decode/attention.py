"""Attention of new rows over the pool in plain torch: for CPUs, and for GPUs without Triton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trio_ray.model.decode.rows import NewRows, RunExtents

SHORTEST_SHARE = 0.75
"""Sequences attend together where the shortest has at least this share of the longest one's rows."""


@dataclass(frozen=True)
class _Group:
    """Sequences of about the same length, padded to the longest.

    Attributes:
        queries: (n, q) int64, numbers of the new rows; a row stands for padding.
        real: (n, q) bool.
        rows: (n, longest) int64, rows of the pool.
        visible: (n, q, longest) bool, which of them each new row sees.
    """

    queries: Tensor
    real: Tensor
    rows: Tensor
    visible: Tensor


class Scratch:
    """Memory that gathered keys and values are written to again and again: fresh memory costs a CPU more than the copy
    into it.
    """

    def __init__(self) -> None:
        self._memory: list[Tensor] = []

    def gather(self, keys: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, kv_heads, D) each -> (n, length, kv_heads, D) each, until the next call."""
        size = (rows.numel(), *keys.shape[1:])
        count = rows.numel() * keys.shape[1] * keys.shape[2]
        if not self._memory or self._memory[0].numel() < count or self._memory[0].dtype != keys.dtype:
            self._memory = [keys.new_empty(count) for _ in range(2)]
        for states, memory in zip((keys, values), self._memory, strict=True):
            torch.index_select(states, 0, rows.flatten(), out=memory[:count].view(size))
        first, second = (memory[:count].view(*rows.shape, *keys.shape[1:]) for memory in self._memory)
        return first, second


class PaddedAttention:
    """What one pass needs to know of a run of layers; made once and used by all its layers.

    Waits for the device where that is a GPU.
    """

    def __init__(self, rows: NewRows, extents: RunExtents, scratch: Scratch | None = None) -> None:
        self._scratch = scratch or Scratch()
        device = rows.slot.device
        slots = rows.slot.long()
        self._places = (extents.own_start[slots] + extents.own_rows[slots] + rows.number).long()
        sequences = _sequences(rows, extents)
        self._groups = [_Group(*(x.to(device) for x in _padded(group))) for group in _of_like_length(sequences)]

    def store(self, keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor) -> None:
        """Write the new rows' keys and values, (T, kv_heads, D), into those of one layer, (rows, kv_heads, D)."""
        keys.index_copy_(0, self._places, new_keys)
        values.index_copy_(0, self._places, new_values)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """(T, heads, D) queries over one layer's (rows, kv_heads, D) keys and values -> (T, heads, D)."""
        out = torch.empty_like(query)
        for group in self._groups:
            own_keys, own_values = self._scratch.gather(keys, values, group.rows)
            result = _attend(query[group.queries], own_keys, own_values, group.visible, scale)
            out[group.queries[group.real]] = result[group.real]
        return out


@dataclass(frozen=True)
class _Sequence:
    """The new rows `first ..` of a sequence, `count` of them, and the rows of the pool that it holds, new ones
    included.
    """

    first: int
    count: int
    rows: Tensor


def _sequences(rows: NewRows, extents: RunExtents) -> list[_Sequence]:
    slots, numbers = rows.slot.tolist(), rows.number.tolist()
    places = torch.stack([extents.prefix_start, extents.prefix_rows, extents.own_start, extents.own_rows]).t().tolist()
    begins = [row for row, number in enumerate(numbers) if number == 0]
    found = []
    for first, stop in zip(begins, [*begins[1:], len(slots)], strict=True):
        prefix_start, prefix_rows, own_start, own_rows = places[slots[first]]
        own_stop = own_start + own_rows + stop - first
        held = torch.cat([torch.arange(prefix_start, prefix_start + prefix_rows), torch.arange(own_start, own_stop)])
        found.append(_Sequence(first, stop - first, held))
    return found


def _of_like_length(sequences: Sequence[_Sequence]) -> list[list[_Sequence]]:
    groups: list[list[_Sequence]] = []
    for sequence in sorted(sequences, key=lambda one: -len(one.rows)):
        if not groups or len(sequence.rows) < SHORTEST_SHARE * len(groups[-1][0].rows):
            groups.append([])
        groups[-1].append(sequence)
    return groups


def _padded(group: Sequence[_Sequence]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of a `_Group`, on the CPU."""
    first, count, length = (
        torch.tensor([getter(one) for one in group])[:, None]
        for getter in (lambda one: one.first, lambda one: one.count, lambda one: len(one.rows))
    )
    step = torch.arange(max(one.count for one in group))
    rows = torch.zeros((len(group), int(length.max())), dtype=torch.int64)
    for own, one in zip(rows, group, strict=True):
        own[: len(one.rows)] = one.rows
    visible = torch.arange(rows.shape[1]) < (length - count + step + 1)[..., None]
    real = step < count
    return first + torch.where(real, step, 0), real, rows, visible


def _attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float) -> Tensor:
    """(n, q, heads, D) queries over (n, length, kv_heads, D), of which `visible` (n, q, length) bool are seen.

    Query heads that share keys stand one behind the other as if they were further new rows: so no key is repeated, and
    every SDPA kernel takes it.
    """
    shared = query.shape[2] // keys.shape[2]
    grouped = query.unflatten(2, (-1, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    result = F.scaled_dot_product_attention(
        grouped,
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=visible.repeat(1, shared, 1)[:, None],
        scale=scale,
    )
    return result.unflatten(2, (shared, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
