"""Stored bytes that are on a GPU to the tensors of a codec, there, for all tensors of a batch at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.kv.lossless.blocks import ABSENT, RAW, StoredBlocks, cut
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.tensors import ALIGNMENT, move_together


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of each of B samples among stored bytes.

    Attributes:
        specs: of the samples' tensors, which differ in the first dimension alone.
        begins: where each sample's bytes begin.
        stored: how many they are; as many as the tensor has where they are no frame.
    """

    specs: Sequence[TensorSpec]
    begins: Sequence[int]
    stored: Sequence[int]


def restore_tensors(
    source: Tensor, tensors: Mapping[str, StoredTensor], are_planes: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Decompress tensors that were stored by `frames`, without waiting for the GPU.

    Args:
        source: flat uint8 on the GPU, a multiple of 8 bytes, with all stored bytes.
        tensors: where in it they are; each of the same B samples.
        are_planes: whether they are through the lossless stage; else they are stored as they are in memory.

    Returns:
        By name the tensor, the samples' pieces one behind the other along the first dimension; and (B,) int32, not 0
        for each sample that is damaged, whose pieces then mean nothing.
    """
    from trio_ray.kv.kernels.decompress import decompress, join_planes

    layout = _Layout.of(tensors, are_planes)
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
    for name, base in layout.bases.items():
        specs = tensors[name].specs
        octets = (joined if base < layout.joined else out)[base : base + sum(spec.size for spec in specs)]
        rows = sum(spec.shape[0] for spec in specs)
        restored[name] = octets.view(specs[0].dtype).view(rows, *specs[0].shape[1:])
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


@dataclass(frozen=True)
class _Layout:
    """What is known about tensors before their stored bytes are looked at.

    Attributes:
        arrays: int64, the tensors of `StoredBlocks` in order.
        planes: by dtype the tensors whose planes are joined.
        bases: by name, where a tensor's bytes go. The tensors that are joined come first: the joined bytes go to the
            same places of other memory.
        joined, size: bytes of the tensors that are joined, and of all.
        samples, longest: B, and bytes of the longest block.
    """

    arrays: tuple[NDArray[np.int64], ...]
    planes: dict[torch.dtype, _Planes]
    bases: dict[str, int]
    joined: int
    size: int
    samples: int
    longest: int

    @classmethod
    def of(cls, tensors: Mapping[str, StoredTensor], are_planes: bool) -> _Layout:
        kinds = {name: each.specs[0].dtype for name, each in tensors.items()}
        joined_as = {name: dtype if are_planes and dtype.itemsize > 1 else None for name, dtype in kinds.items()}
        names = sorted(tensors, key=lambda name: joined_as[name] is None)
        dtypes = [joined_as[name] for name in names]
        stored = [tensors[name] for name in names]
        samples = len(stored[0].specs)
        pieces = np.array([[spec.size for spec in each.specs] for each in stored], np.int64)
        flat = pieces.reshape(-1)
        sizes = pieces.sum(1)
        bases = np.array(list(accumulate((-(-int(size) // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0)))
        goes = (bases[:-1, None] + pieces.cumsum(1) - pieces).reshape(-1)
        begins = np.array([each.begins for each in stored], np.int64).reshape(-1)
        taken = np.array([each.stored for each in stored], np.int64).reshape(-1)
        is_plain = taken == flat

        stretches = [spec.stretches if are_planes else (spec.size,) for each in stored for spec in each.specs]
        counts = np.array([len(own) for own in stretches])
        lengths = np.array([length for own in stretches for length in own], np.int64)
        tensor_of_run = np.repeat(np.arange(len(stretches)), counts)
        first_run = counts.cumsum() - counts
        ends = lengths.cumsum()
        in_tensor = ends - lengths - (ends - lengths)[np.minimum(first_run, len(lengths) - 1)][tensor_of_run]
        run, ahead, length = cut(lengths)
        tensor = tensor_of_run[run]
        offset = in_tensor[run] + ahead
        blocks_of_run = np.bincount(run, minlength=len(lengths))
        first_block = blocks_of_run.cumsum() - blocks_of_run
        of_first_sample = first_run[tensor // samples * samples] + run - first_run[tensor]
        leaders = np.stack([first_block[run], first_block[of_first_sample]], 1)
        blocks_of_tensor = np.bincount(tensor, minlength=len(stretches))
        stop = blocks_of_tensor.cumsum()
        number = np.arange(len(stretches))
        frames = np.stack([begins, begins + taken, flat, number % samples, stop - blocks_of_tensor, stop], 1)
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
            bases=dict(zip(names, bases[:-1].tolist(), strict=True)),
            joined=int(bases[len(dtypes) - dtypes.count(None)]),
            size=int(bases[-1]),
            samples=samples,
            longest=int(length.max(initial=0)),
        )
