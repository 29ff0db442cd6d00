"""The quantising codecs' kernels give the bytes that torch gives on the CPU, also for what is no ordinary number; on a
GPU, and in Triton's interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.interpreter import HALF, INTERPRETED, by_kernels, on_devices
from tests.kv.prefixes import CODECS, codec_of, contained, random_prefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs import arithmetic
from trio_ray.kv.codecs.classes import RowClass
from trio_ray.kv.codecs.quantise import RowGroups
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import code_batch, new_memory
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.kv.restore import read_container, read_containers

DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]
ODD = [math.nan, math.inf, -math.inf, -0.0, 1e-40, -3e-8, 2.0**-25, 7e4, -65504.0, 6e-8, 2.98e-8]


def states(dtype: torch.dtype, *shape: int) -> Tensor:
    """Numbers of very different size, with odd ones strewn in and a constant channel."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(shape, generator=generator) * torch.logspace(-9, 4, shape[-1])
    for place, odd in enumerate(ODD):
        numbers.view(-1)[place :: 97 + 2 * place] = odd
    numbers[..., 0] = 2.5
    return numbers.to(dtype)


@dataclass(frozen=True)
class Case:
    """Numbers of a dtype with heads of `dim` channels, in groups of up to `size` rows or channels."""

    dtype: torch.dtype = HALF
    dim: int = 128
    size: int = 64
    bits: int = 4

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}-dim{self.dim}-groups{self.size}-int{self.bits}"


CASES = [
    *(Case(bits=bits) for bits in range(2, 9)),
    *(Case(dtype, bits=bits) for dtype in (torch.float32, torch.float16) for bits in (2, 5, 8)),
    *(Case(dim=dim, bits=bits) for dim in (12, 32, 64, 96) for bits in (2, 8)),
    *(Case(dim=96, size=size, bits=bits) for size in (32, 128) for bits in (2, 8)),
]
if INTERPRETED:  # a few of each kind: it takes seconds for one
    CASES = [*(Case(bits=bits) for bits in (2, 3, 8)), Case(torch.float32, bits=5), Case(dim=12), Case(dim=96, size=32)]
"""Each of them compiles kernels of its own, so not every combination: all widths in one shape, all dtypes in that
shape, all shapes in the narrowest and the widest.
"""


ROWS, OF_SAMPLES = (36, (5, 0, 22, 3)) if INTERPRETED else (300, (33, 0, 150, 67))
"""Rows of the states, and how many of them belong to each of four samples. The interpreter needs seconds for a few."""

CHOICES = ["int8", "int4", "int2", "mixed"] if INTERPRETED else list(CODECS)
"""The codecs that have kernels of their own; the others differ from them only in what follows on the CPU."""


@on_devices
@pytest.mark.parametrize("case", CASES, ids=str)
def test_integer_kernels_equal_torch(case: Case, device: str) -> None:
    from trio_ray.kv.codecs import quantise
    from trio_ray.kv.kernels import quantise as triton_kernels

    source = states(case.dtype, 2, ROWS, 3, case.dim)
    moved = source.to(device)
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[: sum(OF_SAMPLES)].sort().values
    groups, groups_there = (RowGroups.of(RowClass(x, OF_SAMPLES), case.size) for x in (rows, rows.to(device)))
    vector = math.gcd(case.size, case.dim)
    faults = []

    ours = triton_kernels.compress_channels(moved, groups_there, case.bits)
    truth = quantise.compress_channels(source, groups, case.bits)
    faults += differences(f"compress_channels {case}", ("codes", "grids"), ours, truth)
    out, back = torch.zeros_like(moved), torch.zeros_like(source)
    triton_kernels.decompress_channels(*(tensor.to(device) for tensor in truth), groups_there, case.bits, out)
    quantise.decompress_channels(*truth, groups, case.bits, back)
    faults += differences(f"decompress_channels {case}", ("out",), [out], [back])

    ours = triton_kernels.compress_vectors(moved, rows.to(device), vector, case.bits)
    truth = quantise.compress_vectors(source, rows, vector, case.bits)
    faults += differences(f"compress_vectors {case}", ("codes", "grids"), ours, truth)
    out, back = torch.zeros_like(moved), torch.zeros_like(source)
    triton_kernels.decompress_vectors(*(tensor.to(device) for tensor in truth), rows.to(device), vector, case.bits, out)
    quantise.decompress_vectors(*truth, rows, vector, case.bits, back)
    faults += differences(f"decompress_vectors {case}", ("out",), [out], [back])
    assert not faults, "\n".join(faults)


@on_devices
@pytest.mark.parametrize("name", CHOICES)
def test_a_container_is_the_same_from_both_and_decodes_to_the_same_on_both(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = codec_of(CODECS[name])
    truth = [
        bytes(write_container(coded, codec.settings, "key", "f"))
        for coded in code_batch(PrefixBatch.of(_prefixes()), codec).on_host(new_memory).split()
    ]
    decoded = [read_container(data, codec) for data in truth]
    by_kernels(monkeypatch, arithmetic)
    batch = PrefixBatch.of([prefix.on_device(torch.device(device)) for prefix in _prefixes()])
    coded_there = code_batch(batch, codec).on_host(new_memory)
    if device == "cuda":
        torch.cuda.synchronize()
    for coded, data, here in zip(coded_there.split(), truth, decoded, strict=True):
        assert bytes(write_container(coded, codec.settings, "key", "f")) == data
        there = read_container(data, codec, device=device)
        for number, (a, b) in enumerate(zip(here.segments, there.segments, strict=True)):
            assert b.keys.device.type == device
            faults = differences(f"{name} segment {number}", FIELDS, _fields(b), _fields(a))
            assert not faults, "\n".join(faults)


@on_devices
@pytest.mark.parametrize("name", CHOICES)
def test_containers_are_decoded_together_as_alone(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codec_of(CODECS[name])
    items = [(str(number), contained(prefix, codec, str(number))) for number, prefix in enumerate(_prefixes())]
    alone = [read_container(data, codec) for _, data in items]
    by_kernels(monkeypatch, arithmetic)
    for number, (here, there) in enumerate(zip(alone, read_containers(items, codec, device=device), strict=True)):
        assert isinstance(there, Prefix)
        for segment, (a, b) in enumerate(zip(here.segments, there.segments, strict=True)):
            faults = differences(f"{name} sample {number} segment {segment}", FIELDS, _fields(b), _fields(a))
            assert not faults, "\n".join(faults)


def _prefixes() -> list[Prefix]:
    sizes: list[tuple[int, ...]] = [(300, 75, 20), (150, 42, 10), (50, 50, 50)]
    layers, heads = (1, 2, 3), 4
    if INTERPRETED:
        sizes, layers, heads = [(36, 14, 10), (20, 12, 8), (10, 10, 10)], (1, 1, 2), 2
    return [random_prefix(HALF, rows, layers, heads, 64, seed) for seed, rows in enumerate(sizes)]


FIELDS = ("keys", "values", "position", "text")


def _fields(segment: Segment) -> list[Tensor]:
    return [getattr(segment, name) for name in FIELDS]


BITS_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
SHOWN = 8


def differences(work: str, names: Sequence[str], ours: Sequence[Tensor], truth: Sequence[Tensor]) -> list[str]:
    """What differs bit for bit: of each tensor how many elements, and the first of them with both values."""
    faults = []
    for name, a, b in zip(names, ours, truth, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{work}: {name}"
        a, b = a.cpu().contiguous(), b.cpu().contiguous()
        a_bits, b_bits = (tensor.view(BITS_OF[tensor.element_size()]) for tensor in (a, b))
        places = (a_bits != b_bits).nonzero().tolist()
        if places:
            shown = [f"{p}: {_element(a, a_bits, p)} for {_element(b, b_bits, p)}" for p in places[:SHOWN]]
            faults.append(f"{work}: {len(places)} of {a.numel()} in {name} differ; " + "; ".join(shown))
    return faults


def _element(tensor: Tensor, bits: Tensor, place: Sequence[int]) -> str:
    width = 8 * tensor.element_size()
    return f"{tensor[tuple(place)].item()!r} ({int(bits[tuple(place)]) & (1 << width) - 1:#x})"
