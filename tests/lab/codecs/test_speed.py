"""The codec benchmark's states are prefixes such as a prefill leaves, and its numbers are those of real containers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.kv.prefixes import codec_of
from trio_ray.estimate.made_up_states import GEOMETRIES, prefix_batch
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import code_batch
from trio_ray.lab.codecs.speed import CodecBenchmark, speed_table

CPU = torch.device("cpu")
SMALL = replace(GEOMETRIES["bundled"], kv_heads=2, least=60, most=120)


def test_states_are_consistent_prefixes_at_the_wanted_retention() -> None:
    batch = prefix_batch(SMALL, 3, CPU)
    again = PrefixBatch.of(batch.split())
    for ours, derived in zip(batch.segments, again.segments, strict=True):
        assert (ours.lengths, ours.image_counts, ours.leads) == (derived.lengths, derived.image_counts, derived.leads)
        assert ours.keys.dtype == torch.bfloat16
    for prefix, images in zip(batch.split(), (120, 90, 60), strict=True):
        assert prefix.length == images + SMALL.lead + SMALL.tail
        held = sum(segment.layers * int((~segment.text).sum()) for segment in prefix.segments)
        assert held / (SMALL.layers * images) == pytest.approx(0.111, abs=0.02)
        for segment in prefix.segments:
            assert (segment.position.diff() > 0).all()
            assert 0 <= segment.position[0] < segment.position[-1] == prefix.length - 1


@pytest.mark.parametrize("name", ["vicuna-7b", "mistral-7b"])
def test_known_shapes_have_the_sizes_of_their_models(name: str) -> None:
    """LLaVA-NeXT-7B on Vicuna holds 512 KiB a token in 16 bit, the Mistral variant a quarter of it."""
    assert GEOMETRIES[name].row_bytes(32) == {"vicuna-7b": 512, "mistral-7b": 128}[name] * 1024


def test_sizes_are_those_of_containers_and_all_rates_are_there() -> None:
    benchmark = CodecBenchmark.make(SMALL, 2, CPU, rounds=1)
    codec = codec_of("int4")
    speed = benchmark.measure("int4", codec)
    samples = code_batch(benchmark.batch, codec).split()
    sizes = [len(write_container(sample, codec.settings, f"sample{n}", "0" * 64)) for n, sample in enumerate(samples)]
    assert speed.bytes == sum(sizes) / 2
    assert speed.to_pruned == pytest.approx(16 / speed.bits)
    assert speed.to_unpruned > 2 * speed.to_pruned
    assert speed.device_encode is None
    assert all(rate > 0 for rate in (speed.core_encode, speed.core_decode, speed.compress or 0, speed.decompress or 0))
    plain = benchmark.measure("plain", codec_of({"name": "raw", "zstd": 0}))
    assert plain.compress is None
    assert math.isclose(plain.bits, 16, rel_tol=0.05)
    table = speed_table([speed, plain])
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| int4", "| plain"]
    on_gpu = speed_table([replace(speed, stored_per_s=1234.5, host_ms=3.21, launches=42)])
    assert "| 1234 | 3.21 | 42 |" in on_gpu
