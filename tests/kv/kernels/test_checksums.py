"""Checksums on a GPU are those of the xxhash library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.interpreter import on_devices
from tests.kv.prefixes import contained, random_prefix
from trio_ray.kv.codecs.registry import make_codec
from trio_ray.kv.comparison import compare_on_device, compare_on_host
from trio_ray.kv.container import CheckedContainer, check_containers, checksum
from trio_ray.kv.staging import stage

pytest.importorskip("triton")

LENGTHS = (241, 256, 320, 1024, 1025, 1087, 1088, 1089, 2048, 4096, 4097, 5120, 5121, 9000, 12_345, 70_001)


@on_devices
def test_they_are_those_of_the_library_at_every_length(device: str) -> None:
    from trio_ray.kv.kernels.checksums import differing, halves

    rng = np.random.default_rng(3)
    begins = [16]
    for length in LENGTHS:
        begins.append(begins[-1] + -(-length // 8) * 8 + 24)
    data = rng.integers(0, 256, begins[-1], np.uint8)
    data[begins[3] : begins[3] + LENGTHS[3]] = 0
    data[begins[4] : begins[4] + LENGTHS[4]] = 255
    sums = [checksum(data[begin : begin + length].data) for begin, length in zip(begins, LENGTHS, strict=False)]
    first, size, wanted = (
        torch.tensor(values, device=device) for values in (begins[:-1], LENGTHS, [halves(own) for own in sums])
    )
    source = torch.from_numpy(data).to(device)
    assert not differing(source, first, size, max(LENGTHS), wanted).any()

    for number, (begin, length) in enumerate(zip(begins, LENGTHS, strict=False)):
        damaged = source.clone()
        place = begin + int(rng.integers(length))
        damaged[place] ^= 1 << int(rng.integers(8))
        found = differing(damaged, first, size, max(LENGTHS), wanted)
        assert found.tolist() == [int(other == number) for other in range(len(LENGTHS))], (length, place - begin)


@on_devices
def test_containers_are_compared_where_they_are_and_otherwise_on_the_host(device: str) -> None:
    codec = make_codec({"name": "raw", "zstd": 0})
    containers = [contained(random_prefix(rows=(9, 6, 5)), codec) for _ in range(3)]
    outcomes = check_containers([(None, data) for data in containers], codec)
    samples = [outcome for outcome in outcomes if isinstance(outcome, CheckedContainer)]
    sums = [checksum(data) for data in containers]
    other = [sums[0], checksum(b"another"), sums[2]]
    staged = stage(samples, torch.device(device))
    for compared in (compare_on_device(staged, samples, other), compare_on_host(samples, other)):
        assert compared is not None
        assert compared.differing() == [False, True, False]
    assert compare_on_device(staged, samples, [*sums[:2], None]) is None, "one has been compared before"
    assert compare_on_host(samples, [None] * 3) is None


@pytest.mark.gpu
def test_a_container_of_any_size_is_compared() -> None:
    """A launch has at most 65,535 programs along any axis but the first."""
    from trio_ray.kv.kernels.checksums import BLOCKS, differing, halves

    size = 65_536 * BLOCKS * 1024 + 5000
    data = torch.randint(0, 256, (size // 8 * 8,), dtype=torch.uint8)
    first, length = torch.tensor([0], device="cuda"), torch.tensor([len(data)], device="cuda")
    wanted = torch.tensor([halves(checksum(data.numpy().data))], device="cuda")
    source = data.cuda()
    assert differing(source, first, length, len(data), wanted).tolist() == [0]
    source[-3000] ^= 1
    assert differing(source, first, length, len(data), wanted).tolist() == [1]
