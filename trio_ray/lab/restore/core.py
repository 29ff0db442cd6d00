"""The inverse transform alone on one core of a CPU, beside the same in products of fp32."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from trio_ray.calibration.fit import GROUP_CHANNELS, groups_of, rotary_tables
from trio_ray.estimate.made_up_states import Geometry, prefix_batch
from trio_ray.kv.batch import PrefixBatch, SegmentShape
from trio_ray.kv.codecs.codec import SegmentToRestore
from trio_ray.kv.codecs.transform import TENSOR, Transform, TransformSpec
from trio_ray.kv.codecs.transform_basis import FOLD_BITS, Basis, Components, Group
from trio_ray.kv.codecs.transform_inverse import GroupInverse
from trio_ray.kv.target import RowTarget
from trio_ray.method.schedule import DEFAULT_RETENTION
from trio_ray.tensors import torch_threads

COMPONENTS = {"bundled": (12, 90, 95, 37), "mistral-7b": (0, 496, 480, 128), "vicuna-7b": (0, 496, 480, 128)}
"""Components of a group of layers in each band: of the bundled model about as many as its calibrated basis has, of the
others about as many for each of Mistral's layers as compress its states 10 times.
"""
SAMPLES, BYTES = 16, 700_000_000
"""Samples of a batch, and about the most that their keys and values take in 16 bit."""
TURN_BYTES = 100_000_000
"""Keys and values of a turn at least; a small batch is restored several times."""

MULTIPLIER, EXPONENT = 1 << 20, 8
LARGEST_BYTE = 224
"""Of the bytes that stand for symbols in all bands."""


@dataclass(frozen=True)
class StoredSymbols:
    """A batch before the inverse transform: the rows of pruned prefixes, with random symbols and components, on whose
    values its time does not depend.

    Attributes:
        basis: of the codec.
        rows: the prefixes, of which everything but keys and values counts.
        symbols: by segment the codec's tensor.
    """

    basis: Basis
    rows: PrefixBatch
    symbols: tuple[Tensor, ...]

    @classmethod
    def of(cls, geometry: Geometry, counts: tuple[int, ...], samples: int, seed: int) -> StoredSymbols:
        """Of prefixes of these shapes.

        Args:
            geometry: of the prefixes.
            counts: components in each band, of each group of layers and kind of rows.
            samples: how many prefixes.
            seed: of all that is random.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = prefix_batch(geometry, samples, torch.device("cpu"), seed)
        basis = _random_basis(geometry, rows, counts, generator)
        codec = Transform(TransformSpec(basis="0" * 32), basis)
        sizes = [
            sum(codec.layout(shape)[TENSOR].size for shape in SegmentShape.of(segment)) for segment in rows.segments
        ]
        symbols = [
            torch.randint(0, LARGEST_BYTE + 1, (size,), generator=generator, dtype=torch.uint8) for size in sizes
        ]
        return cls(basis, rows, tuple(symbols))

    @property
    def plain_bytes(self) -> int:
        """Of all keys and values, in 16 bit."""
        return sum(segment.keys.nbytes + segment.values.nbytes for segment in self.rows.segments)

    def inverse(self, codec: Transform, targets: Sequence[RowTarget]) -> None:
        """Write keys and values into the targets of the segments."""
        codec.restore(
            [
                SegmentToRestore(
                    {TENSOR: symbols}, SegmentShape.of(segment), segment.position.numpy(), segment.text.numpy(), target
                )
                for segment, symbols, target in zip(self.rows.segments, self.symbols, targets, strict=True)
            ]
        )


class Fp32Transform(Transform):
    """The codec as it is where a CPU has no exact products of 8 bits."""

    def host_inverse(self, basis: Basis, number: int, kind: int, dtype: torch.dtype) -> GroupInverse:
        """See `Transform`."""
        return self.group_inverse(basis, number, kind, dtype)


def measure_core(
    geometry: Geometry, counts: tuple[int, ...], rounds: int, seed: int, on_step: Callable[[str], None]
) -> dict[str, Any]:
    """GB of 16-bit keys and values a second of processor time, in turns, with one thread of torch.

    Args:
        geometry: of the prefixes.
        counts: see `StoredSymbols.of`.
        rounds: turns, after one that does not count.
        seed: of all that is random.
        on_step: told what begins.
    """
    on_step("random symbols and components")
    with torch_threads(1):
        batch = StoredSymbols.of(geometry, counts, _samples(geometry), seed)
        targets = [RowTarget.fresh(SegmentShape.of(segment), torch.device("cpu")) for segment in batch.rows.segments]
        passes = max(1, TURN_BYTES // batch.plain_bytes)
        spec = TransformSpec(basis="0" * 32)
        contestants = {"as it is": Transform(spec, batch.basis), "fp32 products": Fp32Transform(spec, batch.basis)}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds + 1):
            on_step(f"round {number} of {rounds}" if number else "warm-up, which makes the matrices")
            for name, codec in contestants.items():
                started = time.process_time()
                for _ in range(passes):
                    batch.inverse(codec, targets)
                seconds[name].append((time.process_time() - started) / passes)
    counted = {name: own[1:] for name, own in seconds.items()}
    return {
        "samples": len(batch.rows.lengths),
        "components": list(counts),
        "gb": batch.plain_bytes / 1e9,
        "times": median(b / a for a, b in zip(counted["as it is"], counted["fp32 products"], strict=True)),
        "contestants": {
            name: {
                "gb_per_s": batch.plain_bytes / median(own) / 1e9,
                "best_gb_per_s": batch.plain_bytes / min(own) / 1e9,
                "rounds": own,
            }
            for name, own in counted.items()
        },
    }


def _samples(geometry: Geometry) -> int:
    """Of a batch, two at least."""
    sample = geometry.row_bytes(geometry.layers) * geometry.most * DEFAULT_RETENTION
    return max(2, min(SAMPLES, int(BYTES / sample)))


def _random_basis(geometry: Geometry, rows: PrefixBatch, counts: tuple[int, ...], generator: torch.Generator) -> Basis:
    """Groups of layers as calibration makes them."""
    channels = 2 * geometry.kv_heads * geometry.head_dim
    most = max(1, GROUP_CHANNELS // channels)
    frequencies = 10000.0 ** -torch.linspace(0, 1, geometry.head_dim // 2)
    cosine, sine = rotary_tables(frequencies, geometry.most + geometry.lead + geometry.tail)

    def group(first: int, layers: int) -> Group:
        exponent = torch.full((layers * channels,), EXPONENT, dtype=torch.int8)
        image, text = (_random_components(counts, layers * channels, n, generator) for n in (1, 1 + geometry.lead))
        return Group(first, layers, exponent, image, text)

    groups = [
        group(first, layers)
        for segment in rows.segments
        for first, layers in groups_of(segment.first_layer, len(segment.keys), most)
    ]
    return Basis({}, geometry.kv_heads, geometry.head_dim, geometry.lead, 0, cosine, sine, tuple(groups), {})


def _random_components(counts: tuple[int, ...], channels: int, means: int, generator: torch.Generator) -> Components:
    size = sum(counts)
    return Components(
        counts=counts,
        center=torch.zeros(channels, dtype=torch.int32),
        fold=torch.full((channels,), 1 << FOLD_BITS, dtype=torch.int32),
        matrix=torch.randint(-127, 128, (size, channels), generator=generator, dtype=torch.int8),
        multiplier=torch.full((size,), MULTIPLIER, dtype=torch.int32),
        offset=torch.zeros((means, size), dtype=torch.int64),
        mean=torch.randn((means, channels), generator=generator),
    )
