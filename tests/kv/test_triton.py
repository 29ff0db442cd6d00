"""The GPU's kernels give the bytes that torch gives on the CPU, also for what is no ordinary number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.kv.prefixes import CODECS, codec_of, contained, random_prefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.classes import RowClass
from trio_ray.kv.container import read_container, read_containers, write_container
from trio_ray.kv.encode import code_batch
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.kv.quantise import RowGroups

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
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

    dtype: torch.dtype = torch.bfloat16
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
"""Each of them compiles kernels of its own, so not every combination: all widths in one shape, all dtypes in that
shape, all shapes in the narrowest and the widest.
"""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_integer_kernels_equal_torch(case: Case) -> None:
    from trio_ray.kv import quantise, triton_kernels

    source = states(case.dtype, 2, 300, 3, case.dim)
    on_gpu = source.cuda()
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:250].sort().values
    groups = RowGroups.of(RowClass(rows, (33, 0, 150, 67)), case.size)
    groups_on_gpu = RowGroups.of(RowClass(rows.cuda(), (33, 0, 150, 67)), case.size)
    vector = math.gcd(case.size, case.dim)
    faults = []

    ours = triton_kernels.encode_channels(on_gpu, groups_on_gpu, case.bits)
    truth = quantise.encode_channels(source, groups, case.bits)
    faults += differences(f"encode_channels {case}", ("codes", "grids"), ours, truth)
    out, back = torch.zeros_like(on_gpu), torch.zeros_like(source)
    triton_kernels.decode_channels(*(tensor.cuda() for tensor in truth), groups_on_gpu, case.bits, out)
    quantise.decode_channels(*truth, groups, case.bits, back)
    faults += differences(f"decode_channels {case}", ("out",), [out], [back])

    ours = triton_kernels.encode_vectors(on_gpu, rows.cuda(), vector, case.bits)
    truth = quantise.encode_vectors(source, rows, vector, case.bits)
    faults += differences(f"encode_vectors {case}", ("codes", "grids"), ours, truth)
    out, back = torch.zeros_like(on_gpu), torch.zeros_like(source)
    triton_kernels.decode_vectors(*(tensor.cuda() for tensor in truth), rows.cuda(), vector, case.bits, out)
    quantise.decode_vectors(*truth, rows, vector, case.bits, back)
    faults += differences(f"decode_vectors {case}", ("out",), [out], [back])
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("group", [4, 32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float_kernels_equal_torch(dtype: torch.dtype, group: int) -> None:
    from trio_ray.kv import quantise, triton_kernels

    source = states(dtype, 2, 300, 3, 12 if group == 4 else 128)
    name = f"{dtype} groups of {group}"
    truth = quantise.encode_floats(source, group)
    assert (truth[0] == 0x80).any()  # negative zero, whose sign must come back
    ours = triton_kernels.encode_floats(source.cuda(), group)
    faults = differences(f"encode_floats {name}", ("codes", "scales"), ours, truth)
    out, back = torch.zeros_like(source).cuda(), torch.zeros_like(source)
    triton_kernels.decode_floats(*(tensor.cuda() for tensor in truth), group, out)
    quantise.decode_floats(*truth, group, back)
    faults += differences(f"decode_floats {name}", ("out",), [out], [back])
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("first_segment", ["all", "kept"])
@pytest.mark.parametrize("name", CODECS)
def test_a_container_is_the_same_from_both_and_decodes_to_the_same_on_both(name: str, first_segment: str) -> None:
    codec = codec_of({**CODECS[name], "first_segment": first_segment})
    prefixes = [
        random_prefix(torch.bfloat16, rows, (1, 2, 3), 4, 64, seed)
        for seed, rows in enumerate([(300, 70, 20), (150, 40, 8), (45, 45, 45)])
    ]
    from_cpu = code_batch(PrefixBatch.of(prefixes), codec)
    on_gpu = [_moved(prefix, "cuda") for prefix in prefixes]
    from_gpu = code_batch(PrefixBatch.of(on_gpu), codec).on_host(
        lambda shape, dtype: torch.empty(shape, dtype=dtype, pin_memory=True)
    )
    torch.cuda.synchronize()
    for ours, truth in zip(from_gpu.split(), from_cpu.split(), strict=True):
        data = bytes(write_container(ours, codec.settings, "key", "f"))
        assert data == write_container(truth, codec.settings, "key", "f")
        here, there = read_container(data, codec), read_container(data, codec, device="cuda")
        for number, (a, b) in enumerate(zip(here.segments, there.segments, strict=True)):
            assert b.keys.is_cuda
            faults = differences(f"{name} segment {number}", FIELDS, _fields(b), _fields(a))
            assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", CODECS)
def test_containers_are_decoded_together_as_alone(name: str) -> None:
    codec = codec_of(CODECS[name])
    sizes = [(300, 70, 20), (150, 40, 8), (45, 45, 45)]
    prefixes = [random_prefix(torch.bfloat16, rows, (1, 2, 3), 4, 64, seed) for seed, rows in enumerate(sizes)]
    items = [(str(number), contained(prefix, codec, str(number))) for number, prefix in enumerate(prefixes)]
    for (key, data), there in zip(items, read_containers(items, codec, device="cuda"), strict=True):
        here = read_container(data, codec)
        assert isinstance(there, Prefix)
        for number, (a, b) in enumerate(zip(here.segments, there.segments, strict=True)):
            faults = differences(f"{name} sample {key} segment {number}", FIELDS, _fields(b), _fields(a))
            assert not faults, "\n".join(faults)


FIELDS = ("keys", "values", "position", "text")


def _fields(segment: Segment) -> list[Tensor]:
    return [getattr(segment, name) for name in FIELDS]


def _moved(prefix: Prefix, device: str) -> Prefix:
    segments = tuple(
        Segment(s.first_layer, s.keys.to(device), s.values.to(device), s.position.to(device), s.text.to(device))
        for s in prefix.segments
    )
    kept = tuple(kept.to(device) for kept in prefix.kept)
    return Prefix(prefix.length, segments, kept, prefix.top_ids.to(device), prefix.top_logprobs.to(device))


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
