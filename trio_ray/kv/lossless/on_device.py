"""Stored bytes that are on a GPU to the tensors of a codec, there, for all tensors of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.layout import StoredLayout
from trio_ray.kv.lossless.blocks import ABSENT, RAW, StoredBlocks, cut
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.tensors import ALIGNMENT, move_together


@dataclass(frozen=True)
class StoredTensors:
    """The codec's tensors of B samples among stored bytes, n of each.

    Attributes:
        layouts: of the samples; they have the same names, and differ in the first dimension of the tensors alone.
        begins: (n, B) int64, where each tensor begins.
        stored: (n, B) int64, its stored bytes: as many as it has where they are no frame.
    """

    layouts: Sequence[StoredLayout]
    begins: NDArray[np.int64]
    stored: NDArray[np.int64]


def restore_tensors(source: Tensor, tensors: StoredTensors) -> tuple[dict[str, Tensor], Tensor]:
    """Decompress tensors that were stored by `frames`, without waiting for the GPU.

    Args:
        source: flat uint8 on the GPU, a multiple of 8 bytes, with all stored bytes.
        tensors: where in it they are.

    Returns:
        By name the tensor, the samples' pieces one behind the other along the first dimension; and (B,) int32, not 0
        for each sample that is damaged, whose pieces then mean nothing.
    """
    from trio_ray.kv.kernels.decompress import decompress, join_planes

    layout = _Layout.of(tensors)
    planes = list(layout.planes.values())
    moved = move_together(
        [torch.from_numpy(array) for array in (*layout.arrays, *(own.pieces for own in planes))], source.device
    )
    frames, mode, place, start, length, sample, leaders, *pieces = moved
    blocks = StoredBlocks(frames, mode, place, start, length, sample, leaders, layout.longest)
    out, faults = decompress(source, blocks, layout.size, layout.samples)
    joined = torch.empty(layout.joined, dtype=torch.uint8, device=source.device)
    for (dtype, own), numbers in zip(layout.planes.items(), pieces, strict=True):
        if own.longest:
            join_planes(out, numbers, own.longest, dtype, joined.view(dtype))
    restored: dict[str, Tensor] = {}
    for name, spec, base, size in layout.tensors:
        octets = (joined if base < layout.joined else out)[base : base + size]
        rows = size // (prod(spec.shape[1:]) * spec.dtype.itemsize)
        restored[name] = octets.view(spec.dtype).view(rows, *spec.shape[1:])
    return restored, faults


@dataclass(frozen=True)
class _Planes:
    """Tensors of one dtype that are stored as planes.

    Attributes:
        pieces: (n, 3) int64, see `join_planes`.
        longest: elements of the longest piece.
    """

    pieces: NDArray[np.int64]
    longest: int

    @classmethod
    def of(cls, mine: NDArray[np.bool_], goes: NDArray[np.int64], sizes: NDArray[np.int64], width: int) -> _Planes:
        """Of n pieces those that are `mine`: (n,) each, `goes` is where a piece begins and `sizes` its bytes, and an
        element has `width` bytes.
        """
        elements = sizes[mine] // width
        return cls(np.stack([goes[mine], elements, goes[mine] // width], 1), int(elements.max()))


class _Restored(NamedTuple):
    """A tensor of all samples.

    Attributes:
        name: of it.
        spec: of the first sample's piece.
        base, size: where its bytes begin, and how many they are.
    """

    name: str
    spec: TensorSpec
    base: int
    size: int


@dataclass(frozen=True)
class _Layout:
    """What is known about tensors before their stored bytes are looked at.

    Attributes:
        arrays: int64, the tensors of `StoredBlocks` in order.
        planes: by dtype the tensors whose planes are joined.
        tensors: where they go. Those that are joined come first: the joined bytes go to the same places of other
            memory.
        joined, size: bytes of the tensors that are joined, and of all.
        samples, longest: B, and bytes of the longest block.
    """

    arrays: tuple[NDArray[np.int64], ...]
    planes: dict[torch.dtype, _Planes]
    tensors: list[_Restored]
    joined: int
    size: int
    samples: int
    longest: int

    @classmethod
    def of(cls, stored: StoredTensors) -> _Layout:
        first, samples = stored.layouts[0], len(stored.layouts)
        wide = [spec.dtype if first.are_planes and spec.dtype.itemsize > 1 else None for spec in first.specs]
        order = sorted(range(len(wide)), key=lambda number: wide[number] is None)
        dtypes = [wide[number] for number in order]
        pieces = np.stack([layout.sizes for layout in stored.layouts], 1)[order]
        sizes = pieces.sum(1)
        bases = np.append(0, (-(-sizes // ALIGNMENT) * ALIGNMENT).cumsum())
        goes = (bases[:-1, None] + pieces.cumsum(1) - pieces).reshape(-1)
        flat, begins, taken = pieces.reshape(-1), stored.begins[order].reshape(-1), stored.stored[order].reshape(-1)
        is_plain = taken == flat

        # By tensor and then by sample their stretches: each sample has as many of a tensor.
        behind = first.counts.cumsum()
        own = np.stack([layout.stretches for layout in stored.layouts])
        lengths = np.concatenate([own[:, behind[n] - first.counts[n] : behind[n]].reshape(-1) for n in order])
        counts = first.counts[order].repeat(samples)
        tensor_of_run = np.arange(len(flat)).repeat(counts)
        first_run = counts.cumsum() - counts
        ends = lengths.cumsum()
        in_tensor = ends - lengths - (flat.cumsum() - flat)[tensor_of_run]
        run, ahead, length = cut(lengths)
        tensor = tensor_of_run[run]
        offset = in_tensor[run] + ahead
        blocks_of_run = np.bincount(run, minlength=len(lengths))
        first_block = blocks_of_run.cumsum() - blocks_of_run
        of_first_sample = first_run[tensor // samples * samples] + run - first_run[tensor]
        leaders = np.stack([first_block[run], first_block[of_first_sample]], 1)
        stop = np.bincount(tensor, minlength=len(flat)).cumsum()
        number = np.arange(len(flat))
        frames = np.stack([begins, begins + taken, flat, number % samples, np.append(0, stop[:-1]), stop], 1)
        return cls(
            arrays=(
                frames[~is_plain],
                np.where(is_plain[tensor], RAW, ABSENT),
                begins[tensor] + offset,
                goes[tensor] + offset,
                length,
                tensor % samples,
                np.minimum(leaders, max(len(run) - 1, 0)),
            ),
            planes={
                dtype: _Planes.of(np.repeat([own == dtype for own in dtypes], samples), goes, flat, dtype.itemsize)
                for dtype in dict.fromkeys(dtypes)
                if dtype is not None
            },
            tensors=[
                _Restored(first.names[number], first.specs[number], base, size)
                for number, base, size in zip(order, bases[:-1].tolist(), sizes.tolist(), strict=True)
            ],
            joined=int(bases[len(dtypes) - dtypes.count(None)]),
            size=int(bases[-1]),
            samples=samples,
            longest=int(length.max(initial=0)),
        )
