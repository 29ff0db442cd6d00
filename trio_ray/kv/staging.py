"""From checked containers in host memory to one block of bytes on a GPU, in one copy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trio_ray.kv.container import CheckedContainer
from trio_ray.kv.header import ZSTD
from trio_ray.kv.lossless.on_device import StoredTensors
from trio_ray.kv.lossless.zstd import decompress_into
from trio_ray.tensors import side_stream

ALIGNMENT = 16
THREADS = 8
"""Threads that copy into pinned memory, which a few of them keep busy; they work without Python's lock."""
DECOMPRESS_THREADS = max(THREADS, os.cpu_count() or 1)
"""The same that decompress what a GPU cannot."""
WORTH_THREADS = 1 << 24
"""Fewer bytes are copied by the caller's thread."""
COPIED_AT_ONCE = 1 << 25
"""Bytes; the few numbers that other work sends to the GPU wait for no more than this."""


@dataclass(frozen=True)
class Staged:
    """The stored bytes of B samples on a GPU.

    Attributes:
        source: flat uint8, a multiple of 8 bytes.
        tensors: where the codec's tensors are in it.
        faults: (B,) what is wrong with a sample, as far as the CPU knows; empty for nothing.
        begins: (B,) where each sample's container begins in it; None where it holds no containers.
        arrived: when `source` is complete, for streams other than the current one; None where no stream has to know.
    """

    source: Tensor
    tensors: StoredTensors
    faults: list[str]
    begins: list[int] | None
    arrived: torch.cuda.Event | None


def stage(samples: Sequence[CheckedContainer], device: torch.device) -> Staged:
    """Copy containers to a GPU, without waiting for it.

    Containers that lie in one pinned tensor are copied from there as they are. Others are put together in pinned
    memory first. Frames that a GPU cannot read are decompressed here, in native threads.

    Args:
        samples: of one kind (`CheckedContainer.kind`).
        device: the GPU.
    """
    if samples[0].lossless == ZSTD:
        return _stage_decompressed(samples, device)
    common = _common_span(samples)
    if common is None:
        common = _joined([sample.data for sample in samples])
    span, begins = common
    tensors = StoredTensors(
        [sample.layout for sample in samples],
        np.stack([sample.begins for sample in samples], 1) + np.array(begins, np.int64),
        np.stack([sample.stored for sample in samples], 1),
    )
    source, arrived = _copied(span, device)
    return Staged(source, tensors, ["" for _ in samples], begins, arrived)


def _common_span(samples: Sequence[CheckedContainer]) -> tuple[Tensor, list[int]] | None:
    """The part of one pinned tensor that holds all samples, and where each begins in it; None where there is none."""
    tensors = [sample.tensor for sample in samples]
    if any(tensor is None for tensor in tensors):
        return None
    known = [tensor for tensor in tensors if tensor is not None]
    storage = known[0].untyped_storage()
    first_byte = storage.data_ptr()
    if not known[0].is_pinned() or any(tensor.untyped_storage().data_ptr() != first_byte for tensor in known):
        return None
    starts = [int(tensor.storage_offset()) for tensor in known]
    first = min(starts)
    last = max(start + len(tensor) for start, tensor in zip(starts, known, strict=True))
    if last - first > 2 * sum(map(len, known)):
        return None
    span = torch.empty(0, dtype=torch.uint8).set_(storage, first, (last - first,), (1,))
    return span, [start - first for start in starts]


def _joined(arrays: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, list[int]]:
    """Bytes one behind the other in pinned memory, and where each begins."""
    block, begins = _pinned([len(array) for array in arrays])
    room = block.numpy()

    def put(number: int) -> None:
        room[begins[number] : begins[number] + len(arrays[number])] = arrays[number]

    if len(block) < WORTH_THREADS:
        for number in range(len(arrays)):
            put(number)
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(put, range(len(arrays))))
    return block, begins


def _pinned(sizes: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Pinned memory, contents undefined, for bytes of these sizes one behind the other, and where each begins."""
    begins = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    return torch.empty(begins[-1], dtype=torch.uint8, pin_memory=torch.cuda.is_available()), begins[:-1]


def _copied(span: Tensor, device: torch.device) -> tuple[Tensor, torch.cuda.Event | None]:
    """The bytes on the device, for its current stream, and when they are there. They travel on another stream, beside
    what the current one is doing.
    """
    if device.type != "cuda":  # Triton's interpreter
        return F.pad(span, (0, _padding(len(span)))), None
    current, copying, arrived = torch.cuda.current_stream(device), side_stream(device, "copy"), torch.cuda.Event()
    with torch.cuda.stream(copying):
        source = torch.empty(len(span) + _padding(len(span)), dtype=torch.uint8, device=device)
        for start in range(0, len(span), COPIED_AT_ONCE):
            piece = span[start : start + COPIED_AT_ONCE]
            source[start : start + len(piece)].copy_(piece, non_blocking=True)
        arrived.record(copying)
    current.wait_event(arrived)
    source.record_stream(current)
    return source, arrived


def _padding(size: int) -> int:
    """Bytes to the next multiple of 8, of which there is one at least."""
    return max(8, -(-size // 8) * 8) - size


def _stage_decompressed(samples: Sequence[CheckedContainer], device: torch.device) -> Staged:
    """The planes of all tensors, decompressed on the CPU."""
    layouts = [sample.layout for sample in samples]
    sizes = np.stack([layout.sizes for layout in layouts], 1)
    pieces = list(np.ndindex(sizes.shape))
    faults = ["" for _ in samples]
    block, begins = _pinned(sizes.reshape(-1).tolist())
    room = block.numpy()

    def put(place: int) -> None:
        number, sample = pieces[place]
        planes = room[begins[place] : begins[place] + sizes[number, sample]]
        try:
            decompress_into(samples[sample].stored_bytes(number), planes)
        except ValueError as error:
            planes[:] = 0
            name = layouts[sample].names[number]
            faults[sample] = faults[sample] or f"not as written: tensor '{name}': {error}"

    with ThreadPoolExecutor(DECOMPRESS_THREADS) as pool:
        list(pool.map(put, range(len(pieces))))
    source, arrived = _copied(block, device)
    tensors = StoredTensors(layouts, np.array(begins, np.int64).reshape(sizes.shape), sizes)
    return Staged(source, tensors, faults, None, arrived)
