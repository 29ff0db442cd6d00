"""How fast codecs are and how small they make prefixes: on the device at hand, and on one CPU core."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from trio_ray.estimate.made_up_states import Geometry, prefix_batch
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.codec import Codec, SegmentToRestore
from trio_ray.kv.codecs.transform import Transform
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import CodedBatch, CodedPrefix, code_batch, new_memory, plain_tensors
from trio_ray.kv.lossless.frames import FrameMaker, frame_maker
from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.kv.lossless.zstd import compress, decompress
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.kv.target import RowTarget
from trio_ray.precompute.host_memory import HostMemory, aligned
from trio_ray.study import shown, table
from trio_ray.tensors import mark, milliseconds_between, torch_threads

CPU_LAYERS = 2
"""Layers that the CPU's rates are measured on, of each segment but the first: large enough not to fit a cache."""

UNTIMED_BATCHES = 16
"""After so many batches the tables of frames stay for as many more: a job makes them for one in 256 batches."""


@dataclass(frozen=True)
class CodecSpeed:
    """Medians over the rounds. Rates are GB/s (1e9 bytes); None where there is no GPU, or no lossless stage.

    Attributes:
        codec: its name or settings as asked for.
        bytes: of a sample's container, mean of the batch's longest and shortest.
        bits: of the container a value.
        to_pruned, to_unpruned: how much smaller than the same pruned prefix, and than all rows in all layers, both in
            16 bit.
        device_encode, device_decode: of 16-bit keys and values on the GPU.
        core_encode, core_decode: the same on one CPU core.
        compress, decompress: of coded bytes in and out of the lossless stage, one core.
        device_compress: of coded bytes into the lossless stage on the GPU.
        device_bytes: of a sample's container, where the GPU did that.
        stored_per_s: samples a second from keys and values to pinned host memory, as a replica takes a batch there:
            encoded, made into frames, copied. Nothing else uses the GPU.
        host_ms: what the host needs to hand such a batch to the GPU. A job's host hands over the next prefill as well
            while the GPU computes.
        launches: kernels, copies and fills that the GPU runs for such a batch.
        basis: bytes of its basis, which a cache holds once; None without one.
    """

    codec: str
    bytes: float
    bits: float
    to_pruned: float
    to_unpruned: float
    device_encode: float | None
    device_decode: float | None
    core_encode: float
    core_decode: float
    compress: float | None
    decompress: float | None
    device_compress: float | None
    device_bytes: float | None
    stored_per_s: float | None
    host_ms: float | None
    launches: int | None
    basis: int | None


@dataclass(frozen=True)
class CodecBenchmark:
    """The states that all codecs of a run are measured on: a batch on the device."""

    geometry: Geometry
    batch: PrefixBatch
    rounds: int

    @classmethod
    def make(cls, geometry: Geometry, samples: int, device: torch.device, rounds: int) -> CodecBenchmark:
        """Make the states. Without a GPU a batch of two is enough: only the sizes of containers come from it."""
        batch = prefix_batch(geometry, samples if device.type == "cuda" else 2, device)
        return cls(geometry, batch, rounds)

    def measure(self, name: str, codec: Codec, basis: bytes | None = None) -> CodecSpeed:
        """A codec, and its basis if it has one."""
        on_gpu = self._rates(self.batch, codec) if self.batch.top_ids.is_cuda else (None, None)
        few_layers = self._few_layers(codec)
        with torch_threads(1):
            core = self._rates(few_layers, codec)
            lossless = self._lossless_rates(code_batch(few_layers, codec).split()[0], codec.settings.zstd)
        ends = self.longest_and_shortest
        size = sum(container_sizes(ends, codec))
        device_compress, device_size = self._device_lossless(codec)
        stored_per_s, host_ms, launches = self._stage(codec) if self.batch.top_ids.is_cuda else (None, None, None)
        pruned = sum(prefix.kv_bytes for prefix in ends.split())
        unpruned = sum(self.geometry.row_bytes(self.geometry.layers) * length for length in ends.lengths)
        return CodecSpeed(
            codec=name,
            bytes=size / len(ends.lengths),
            bits=16 * size / pruned,
            to_pruned=pruned / size,
            to_unpruned=unpruned / size,
            device_encode=on_gpu[0],
            device_decode=on_gpu[1],
            core_encode=core[0],
            core_decode=core[1],
            compress=lossless[0],
            decompress=lossless[1],
            device_compress=device_compress,
            device_bytes=device_size,
            stored_per_s=stored_per_s,
            host_ms=host_ms,
            launches=launches,
            basis=None if basis is None else len(basis),
        )

    @cached_property
    def longest_and_shortest(self) -> PrefixBatch:
        """The batch's first and last sample, whose containers are measured."""
        prefixes = self.batch.split()
        return PrefixBatch.of(prefixes[:: max(len(prefixes) - 1, 1)])

    def _few_layers(self, codec: Codec) -> PrefixBatch:
        """Some layers of the first sample on the CPU, from each segment but the first; as many as the codec compresses
        together.
        """
        first = self.batch.split()[0]
        few = []
        for segment in first.segments[1:]:
            layers = CPU_LAYERS
            if isinstance(codec, Transform):
                layers = codec.whole_groups(segment.first_layer, CPU_LAYERS)
            keys, values = segment.keys[:layers].cpu(), segment.values[:layers].cpu()
            few.append(Segment(segment.first_layer, keys, values, segment.position.cpu(), segment.text.cpu()))
        alone = Prefix(first.length, first.lead, tuple(few), (), first.top_ids.cpu(), first.top_logprobs.cpu())
        return PrefixBatch.of([alone])

    def _rates(self, batch: PrefixBatch, codec: Codec) -> tuple[float, float]:
        """GB/s of compressing and of restoring a batch on its device."""
        size = sum(prefix.kv_bytes for prefix in batch.split())
        coded = code_batch(batch, codec)
        encode = self._median(lambda: code_batch(batch, codec), batch.top_ids)
        frame = [
            (position.cpu().numpy(), text.cpu().numpy())
            for position, text in zip(coded.positions, coded.texts, strict=True)
        ]
        decode = self._median(lambda: _decode(coded, codec, frame), batch.top_ids)
        return size / encode / 1e9, size / decode / 1e9

    def _lossless_rates(self, coded: CodedPrefix, level: int) -> tuple[float | None, float | None]:
        if not level:
            return None, None
        plain = [tensor for segment in coded.segments for tensor in segment.values()]
        packed = [compress(tensor, level) for tensor in plain]
        size = sum(tensor.numel() * tensor.element_size() for tensor in plain)

        def decompress_all() -> None:
            for tensor, small in zip(plain, packed, strict=True):
                decompress(small.numpy(), TensorSpec(tensor.dtype, tuple(tensor.shape)))

        inwards = self._median(lambda: [compress(tensor, level) for tensor in plain], coded.top_ids)
        return size / inwards / 1e9, size / self._median(decompress_all, coded.top_ids) / 1e9

    def _device_lossless(self, codec: Codec) -> tuple[float | None, float | None]:
        """GB/s of coded bytes into the lossless stage on the GPU, and what a container then takes; None without."""
        maker = frame_maker(codec.settings, self.batch.top_ids.device)
        if maker is None:
            return None, None
        segments = code_batch(self.batch, codec).segments
        plain = [tensor for segment in segments for tensor in segment.tensors.values()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in plain)

        tensors = [tensor for number, segment in enumerate(segments) for tensor in plain_tensors(number, segment)]
        for _ in range(UNTIMED_BATCHES):
            maker.frames(tensors)
        seconds = self._median(lambda: maker.frames(tensors), self.batch.top_ids)
        ends = self.longest_and_shortest
        stored = sum(container_sizes(ends, codec, FrameMaker())) / len(ends.lengths)
        return size / seconds / 1e9, stored

    def _stage(self, codec: Codec) -> tuple[float, float, int]:
        """`stored_per_s`, `host_ms` and `launches`."""
        device = self.batch.top_ids.device
        maker, memory = frame_maker(codec.settings, device), HostMemory(pinned=True)

        def store() -> None:
            coded = code_batch(self.batch, codec, maker)
            lease = memory.lease(sum(aligned(tensor.nbytes) for tensor in coded.tensors()))
            coded.on_host(lease.allocate)
            lease.release()

        for _ in range(UNTIMED_BATCHES):
            store()
        seconds = self._median(store, self.batch.top_ids)
        host = []
        for _ in range(self.rounds):
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            store()
            host.append(1e3 * (time.perf_counter() - started))
        return len(self.batch.lengths) / seconds, statistics.median(host), count_launches(store)

    def _median(self, work: Callable[[], object], where: Tensor) -> float:
        """Seconds that `work` takes until the device has finished all of it."""
        work()  # compiles kernels
        return statistics.median(_seconds(work, where) for _ in range(self.rounds))


def count_launches(work: Callable[[], object]) -> int:
    """Kernels, copies and fills that a GPU runs for `work`."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiled.events())


def container_sizes(batch: PrefixBatch, codec: Codec, maker: FrameMaker | None = None) -> list[int]:
    """Bytes of the samples' containers; `maker` as in `code_batch`."""
    coded = code_batch(batch, codec, maker).on_host(new_memory)
    return [
        len(write_container(sample, codec.settings, f"sample{n}", "0" * 64)) for n, sample in enumerate(coded.split())
    ]


def speed_table(speeds: Sequence[CodecSpeed]) -> str:
    """A table with one line for each codec; rates in GB/s."""
    return table(
        speeds,
        {
            "codec": lambda speed: speed.codec,
            "MB a sample": lambda speed: shown(speed.bytes, ".3g", times=1e-6),
            "bits a value": lambda speed: shown(speed.bits, ".2f"),
            "to TRIO 16 bit": lambda speed: shown(speed.to_pruned, ".1f", "x"),
            "to unpruned": lambda speed: shown(speed.to_unpruned, ".1f", "x"),
            "encode GPU": lambda speed: shown(speed.device_encode, ".3g"),
            "decode GPU": lambda speed: shown(speed.device_decode, ".3g"),
            "encode core": lambda speed: shown(speed.core_encode, ".3g"),
            "decode core": lambda speed: shown(speed.core_decode, ".3g"),
            "zstd in": lambda speed: shown(speed.compress, ".3g"),
            "zstd out": lambda speed: shown(speed.decompress, ".3g"),
            "frames GPU": lambda speed: shown(speed.device_compress, ".3g"),
            "MB a sample by them": lambda speed: shown(speed.device_bytes, ".3g", times=1e-6),
            "stored samples/s": lambda speed: shown(speed.stored_per_s, ".4g"),
            "host ms a batch": lambda speed: shown(speed.host_ms, ".3g"),
            "launches a batch": lambda speed: speed.launches,
            "MB a basis": lambda speed: shown(speed.basis, ".3g", times=1e-6),
        },
    )


def _decode(coded: CodedBatch, codec: Codec, frame: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> None:
    """`frame` holds each segment's position and text in host memory, where a reader has them."""
    device = next(iter(coded.segments[0].tensors.values())).device
    codec.restore(
        [
            SegmentToRestore(segment.tensors, shapes, position, text, RowTarget.fresh(shapes, device))
            for segment, shapes, (position, text) in zip(coded.segments, coded.shapes, frame, strict=True)
        ]
    )


def _seconds(work: Callable[[], object], where: Tensor) -> float:
    start = mark(where.device)
    work()
    return milliseconds_between(start, mark(where.device)) / 1e3
