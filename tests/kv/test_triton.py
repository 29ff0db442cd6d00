"""The GPU's kernels give the bytes that torch gives on the CPU, also for what is no ordinary number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.kv.prefixes import CODECS, codec_of, random_prefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.classes import RowClass
from trio_ray.kv.container import read_container, write_container
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


@pytest.mark.parametrize("dim", [12, 32, 64, 96, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kernel_equals_torch(dtype: torch.dtype, dim: int) -> None:
    from trio_ray.kv import quantise, triton_kernels

    source = states(dtype, 2, 300, 3, dim)
    on_gpu = source.cuda()
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:250].sort().values
    for size in (32, 64, 128):
        groups = RowGroups.of(RowClass(rows, (33, 0, 150, 67)), size)
        groups_on_gpu = RowGroups.of(RowClass(rows.cuda(), (33, 0, 150, 67)), size)
        vector = math.gcd(size, dim)
        for bits in range(2, 9):
            ours = triton_kernels.encode_channels(on_gpu, groups_on_gpu, bits)
            truth = quantise.encode_channels(source, groups, bits)
            assert_equal(ours, truth)
            out, back = torch.zeros_like(on_gpu), torch.zeros_like(source)
            triton_kernels.decode_channels(*ours, groups_on_gpu, bits, out)
            quantise.decode_channels(*truth, groups, bits, back)
            assert_equal([out], [back])
            ours = triton_kernels.encode_vectors(on_gpu, rows.cuda(), vector, bits)
            truth = quantise.encode_vectors(source, rows, vector, bits)
            assert_equal(ours, truth)
            triton_kernels.decode_vectors(*ours, rows.cuda(), vector, bits, out)
            quantise.decode_vectors(*truth, rows, vector, bits, back)
            assert_equal([out], [back])
        ours, truth = triton_kernels.encode_floats(on_gpu, vector), quantise.encode_floats(source, vector)
        assert_equal(ours, truth)
        triton_kernels.decode_floats(*ours, vector, out)
        quantise.decode_floats(*truth, vector, back)
        assert_equal([out], [back])


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
        data = write_container(ours, codec, "key", "f")
        assert data == write_container(truth, codec, "key", "f")
        here, there = read_container(data, codec), read_container(data, codec, device="cuda")
        for a, b in zip(here.segments, there.segments, strict=True):
            assert b.keys.is_cuda
            assert_equal([b.keys, b.values], [a.keys, a.values])


def _moved(prefix: Prefix, device: str) -> Prefix:
    segments = tuple(
        Segment(s.first_layer, s.keys.to(device), s.values.to(device), s.position.to(device), s.text.to(device))
        for s in prefix.segments
    )
    kept = tuple(kept.to(device) for kept in prefix.kept)
    return Prefix(prefix.length, segments, kept, prefix.top_ids.to(device), prefix.top_logprobs.to(device))


def assert_equal(ours: object, truth: object) -> None:
    """Bit for bit."""
    for a, b in zip(ours, truth, strict=True):  # type: ignore[call-overload]
        assert torch.equal(a.cpu().contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
