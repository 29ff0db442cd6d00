"""What a container holds of a prefix of known shapes: the codec's tensors, and `rows` behind them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import sub
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.kv.serialise import Kind, entries_template, stored_order

ROWS = "rows"
"""The tensor that no codec makes, see `row_bits`. It is stored last: no type is narrower, and the codec's names begin
with a digit."""


class _Order(NamedTuple):
    """Names in the order in which tensors are stored, and what safetensors' list of them and of `rows` says."""

    names: tuple[str, ...]
    template: str


@dataclass(frozen=True)
class StoredLayout:
    """The n tensors that a codec makes of a prefix, in the order in which they are stored.

    Attributes:
        names: see `stored_name`.
        specs: of the tensors, ahead of the lossless stage.
        are_planes: whether there is that stage; else they are stored as they are in memory.
        sizes: (n,) int64, bytes ahead of that stage.
        counts: (n,) int64, how many stretches each tensor has, see `TensorSpec.stretches`.
        stretches: (S,) int64, bytes of all stretches, in order.
        template: safetensors' list of the tensors and of `rows`, see `entries_template`.
    """

    names: tuple[str, ...]
    specs: tuple[TensorSpec, ...]
    are_planes: bool
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    stretches: NDArray[np.int64]
    template: str

    @classmethod
    def of(cls, specs: Mapping[str, TensorSpec], are_planes: bool) -> StoredLayout:
        """Of tensors by `stored_name`."""
        kinds = [(name, torch.uint8, 1) if are_planes else (name, s.dtype, len(s.shape)) for name, s in specs.items()]
        order = _order(tuple(kinds))
        ordered = tuple([specs[name] for name in order.names])
        sizes = [spec.size for spec in ordered]
        stretches = [spec.stretches for spec in ordered] if are_planes else [(size,) for size in sizes]
        return cls(
            names=order.names,
            specs=ordered,
            are_planes=are_planes,
            sizes=np.array(sizes, np.int64),
            counts=np.array([*map(len, stretches)], np.int64),
            stretches=np.array([*chain.from_iterable(stretches)], np.int64),
            template=order.template,
        )

    def entries(self, rows: int, ends: Sequence[int]) -> str:
        """The list of tensors in a container.

        Args:
            rows: bytes of the tensor `rows`, ahead of the lossless stage.
            ends: (n + 1,) where the tensors and `rows` end.
        """
        begins = [0, *ends[:-1]]
        if self.are_planes:
            return self.template % (*chain.from_iterable(zip(map(sub, ends, begins), begins, ends, strict=True)),)
        shapes = [*(spec.shape for spec in self.specs), (rows,)]
        return self.template % (*chain.from_iterable(map(_numbers, shapes, begins, ends)),)

    def plain_ends(self, rows: int) -> list[int]:
        """Where the tensors and `rows` end, without a lossless stage."""
        return list(accumulate((*self.sizes.tolist(), rows)))


def _numbers(shape: Sequence[int], begin: int, end: int) -> Sequence[int]:
    return *shape, begin, end


@functools.lru_cache(256)
def _order(kinds: tuple[Kind, ...]) -> _Order:
    by_name = {kind[0]: kind for kind in (*kinds, (ROWS, torch.uint8, 1))}
    *names, last = stored_order({name: dtype for name, dtype, _ in by_name.values()})
    assert last == ROWS
    return _Order(tuple(names), entries_template(tuple(by_name[name] for name in (*names, last))))
