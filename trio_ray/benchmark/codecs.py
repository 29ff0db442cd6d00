"""How fast codecs are and how small they make prefixes: on the device at hand, and on one CPU core."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from trio_ray.benchmark.codec_states import Geometry, prefix_batch
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codec import Codec
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import CodedBatch, CodedPrefix, code_batch
from trio_ray.kv.lossless import expand, shrink
from trio_ray.kv.prefix import Prefix, Segment

CPU_LAYERS = 2
"""Layers that the CPU's rates are measured on, of each segment but the first: large enough not to fit a cache."""


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
        shrink, expand: of coded bytes in and out of the lossless stage, one core.
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
    shrink: float | None
    expand: float | None


@dataclass(frozen=True)
class CodecBenchmark:
    """The states that all codecs of a run are measured on: a batch on the device, and a few layers of one of its
    samples on the CPU.
    """

    geometry: Geometry
    batch: PrefixBatch
    few_layers: PrefixBatch
    rounds: int

    @classmethod
    def make(cls, geometry: Geometry, samples: int, device: torch.device, rounds: int) -> CodecBenchmark:
        """Make the states. Without a GPU a batch of two is enough: only the sizes of containers come from it."""
        batch = prefix_batch(geometry, samples if device.type == "cuda" else 2, device)
        first = batch.split()[0]
        few = [
            Segment(
                segment.first_layer,
                segment.keys[:CPU_LAYERS].cpu(),
                segment.values[:CPU_LAYERS].cpu(),
                segment.position.cpu(),
                segment.text.cpu(),
            )
            for segment in first.segments[1:]
        ]
        alone = Prefix(first.length, tuple(few), (), first.top_ids.cpu(), first.top_logprobs.cpu())
        return cls(geometry, batch, PrefixBatch.of([alone]), rounds)

    def measure(self, name: str, codec: Codec) -> CodecSpeed:
        """One codec."""
        on_gpu = self._rates(self.batch, codec) if self.batch.top_ids.is_cuda else (None, None)
        with _one_core():
            core = self._rates(self.few_layers, codec)
            lossless = self._lossless_rates(code_batch(self.few_layers, codec).split()[0], codec.settings.zstd)
        places = sorted({0, len(self.batch.lengths) - 1})  # the longest and the shortest
        sizes = self._container_sizes(codec, places)
        prefixes = self.batch.split()
        pruned = sum(prefixes[place].kv_bytes for place in places)
        unpruned = sum(self.geometry.row_bytes(self.geometry.layers) * prefixes[place].length for place in places)
        return CodecSpeed(
            codec=name,
            bytes=sum(sizes) / len(sizes),
            bits=16 * sum(sizes) / pruned,
            to_pruned=pruned / sum(sizes),
            to_unpruned=unpruned / sum(sizes),
            device_encode=on_gpu[0],
            device_decode=on_gpu[1],
            core_encode=core[0],
            core_decode=core[1],
            shrink=lossless[0],
            expand=lossless[1],
        )

    def _container_sizes(self, codec: Codec, places: Sequence[int]) -> list[int]:
        """Bytes of the containers of these samples of the batch."""
        coded = code_batch(self.batch, codec).on_host(lambda shape, dtype: torch.empty(shape, dtype=dtype))
        samples = coded.split()
        return [len(write_container(samples[place], codec, f"sample{place}", "0" * 64)) for place in places]

    def _rates(self, batch: PrefixBatch, codec: Codec) -> tuple[float, float]:
        """GB/s of encoding and of decoding a batch where it is."""
        size = sum(prefix.kv_bytes for prefix in batch.split())
        coded = code_batch(batch, codec)
        encode = self._median(lambda: code_batch(batch, codec), batch.top_ids)
        frame = [(position.cpu(), text.cpu()) for position, text in zip(coded.positions, coded.texts, strict=True)]
        decode = self._median(lambda: _decode(coded, codec, frame), batch.top_ids)
        return size / encode / 1e9, size / decode / 1e9

    def _lossless_rates(self, coded: CodedPrefix, level: int) -> tuple[float | None, float | None]:
        if not level:
            return None, None
        plain = [tensor for segment in coded.segments for tensor in segment.values()]
        packed = [shrink(tensor, level) for tensor in plain]
        size = sum(tensor.numel() * tensor.element_size() for tensor in plain)

        def grow() -> None:
            for tensor, small in zip(plain, packed, strict=True):
                expand(small, tensor.dtype, tuple(tensor.shape))

        inwards = self._median(lambda: [shrink(tensor, level) for tensor in plain], coded.top_ids)
        return size / inwards / 1e9, size / self._median(grow, coded.top_ids) / 1e9

    def _median(self, work: Callable[[], object], where: Tensor) -> float:
        """Seconds that `work` takes, once the device has done all of it."""
        work()  # compiles kernels
        return statistics.median(_seconds(work, where) for _ in range(self.rounds))


def markdown(speeds: Sequence[CodecSpeed]) -> str:
    """A table, a codec a line."""
    head = (
        "| codec | MB a sample | bits a value | to TRIO 16 bit | to unpruned | encode GPU | decode GPU "
        "| encode core | decode core | zstd in | zstd out |"
    )
    lines = [head, "|" + "---|" * 11]
    for speed in speeds:
        rates = [
            speed.device_encode, speed.device_decode, speed.core_encode, speed.core_decode, speed.shrink, speed.expand
        ]  # fmt: skip
        cells = [
            speed.codec, f"{speed.bytes / 1e6:.3g}", f"{speed.bits:.2f}", f"{speed.to_pruned:.1f}x",
            f"{speed.to_unpruned:.1f}x", *("-" if rate is None else f"{rate:.3g}" for rate in rates),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def records(speeds: Sequence[CodecSpeed]) -> list[dict[str, object]]:
    """The same as JSON."""
    return [asdict(speed) for speed in speeds]


def _decode(coded: CodedBatch, codec: Codec, frame: Sequence[tuple[Tensor, Tensor]]) -> None:
    """`frame` holds each segment's position and text in host memory, where a reader has them."""
    for segment, shapes, (position, text) in zip(coded.segments, coded.shapes, frame, strict=True):
        codec.decode(segment.tensors, shapes, position, text)


def _seconds(work: Callable[[], object], where: Tensor) -> float:
    if not where.is_cuda:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@contextmanager
def _one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
