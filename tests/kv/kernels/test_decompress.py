"""Frames of Huffman codes are decompressed by kernels as zstd does it, whatever is in them; on a GPU, and in Triton's
interpreter.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.interpreter import INTERPRETED, on_devices
from tests.kv.lossless.plain_frames import frame_of, tables_of
from trio_ray.kv.codecs.codec import by_stored_name, of_segment
from trio_ray.kv.layout import StoredLayout
from trio_ray.kv.lossless import blocks
from trio_ray.kv.lossless.on_device import StoredTensors, restore_tensors
from trio_ray.kv.lossless.planes import TensorSpec, split_planes
from trio_ray.kv.lossless.zstd import decompress_planes

SAMPLES = 4
GUARD = 16
"""Bytes between the frames of two samples."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted programs are slow: few and wide ones over few bytes."""
    monkeypatch.setattr(blocks, "BLOCK", 1024 if INTERPRETED else 8192)
    if INTERPRETED:
        from trio_ray.kv.kernels import decompress

        monkeypatch.setattr(decompress, "LANES", 64)


def drawn(random: np.random.Generator) -> dict[str, list[Tensor]]:
    """By name one tensor of each sample: packed bytes in two stretches, floats, grids, and one that is empty."""
    size = 1 if INTERPRETED else 9
    symbols = []
    for sample in range(SAMPLES):
        bell = random.normal(127, 3 + sample, size * (700 + 37 * sample)).round().clip(0, 254)
        rare = np.where(random.random(size * 311) < 0.9, 121, random.integers(0, 243, size * 311))
        symbols.append(torch.from_numpy(np.concatenate([bell, rare]).astype(np.uint8)))
    rows = [5, 0, 3, 9]
    return {
        "symbols": symbols,
        "states": [
            torch.from_numpy(random.normal(1, 2, (size * n, 2, 33)).astype(np.float32)).bfloat16() for n in rows
        ],
        "grid": [torch.from_numpy(random.integers(-900, 900, (size * n, 41)).astype(np.int32)) for n in rows],
        "none": [torch.empty((0, 3), dtype=torch.uint8) for _ in rows],
    }


def specs_of(tensors: dict[str, list[Tensor]]) -> dict[str, list[TensorSpec]]:
    last = 311 if INTERPRETED else 9 * 311

    def runs(name: str, size: int) -> tuple[int, ...]:
        return (size - last, last) if name == "symbols" else ()

    return {
        name: [TensorSpec(own.dtype, tuple(own.shape), runs(name, len(own))) for own in each]
        for name, each in tensors.items()
    }


def stored_of(tensors: dict[str, list[Tensor]], specs: dict[str, list[TensorSpec]]) -> dict[str, list[bytes]]:
    stored = {}
    for name, each in tensors.items():
        planes, runs = [split_planes(own).numpy() for own in each], [spec.stretches for spec in specs[name]]
        tables = tables_of(planes, runs)
        stored[name] = [frame_of(data, own, tables) for data, own in zip(planes, runs, strict=True)]
    return stored


def restored(
    stored: dict[str, list[bytes]], specs: dict[str, list[TensorSpec]], device: str
) -> tuple[dict[str, Tensor], list[int]]:
    """What the kernels make of stored bytes, on the CPU, and the samples' faults."""
    layouts = [
        StoredLayout.of(by_stored_name([{name: own[sample] for name, own in specs.items()}]), True)
        for sample in range(SAMPLES)
    ]
    stored = by_stored_name([stored])
    source = b""
    begins = np.zeros((len(stored), SAMPLES), np.int64)
    for tensor, name in enumerate(layouts[0].names):
        for sample, own in enumerate(stored[name]):
            source += b"\xff" * GUARD
            begins[tensor, sample] = len(source)
            source += own
    source += b"\xff" * (-len(source) % 8)
    data = torch.frombuffer(bytearray(source), dtype=torch.uint8).to(device)
    sizes = np.array([[len(own) for own in stored[name]] for name in layouts[0].names], np.int64)
    found, faults = restore_tensors(data, StoredTensors(layouts, begins, sizes))
    return {name: tensor.cpu() for name, tensor in of_segment(0, found).items()}, faults.tolist()


@on_devices
def test_tensors_come_back_bit_for_bit(device: str) -> None:
    tensors = drawn(np.random.default_rng(0))
    specs = specs_of(tensors)
    stored = stored_of(tensors, specs)
    kinds = [own[:4] == bytes.fromhex("28b52ffd") for own in [*stored["symbols"], *stored["states"]]]
    assert any(kinds), "some are frames"
    for name, each in stored.items():
        for own, spec, plain in zip(each, specs[name], tensors[name], strict=True):
            assert np.array_equal(
                decompress_planes(np.frombuffer(own, np.uint8), spec.size), split_planes(plain).numpy()
            ), "zstd reads them too"
    found, faults = restored(stored, specs, device)
    assert faults == [0] * SAMPLES
    for name, each in tensors.items():
        assert torch.equal(found[name], torch.cat(each)), name


@on_devices
def test_a_damaged_frame_is_its_samples_fault_and_the_others_stay_whole(device: str) -> None:
    """What is not called a fault is what zstd reads, if it does, and nothing else is ever touched."""
    random = np.random.default_rng(1)
    tensors = {"symbols": drawn(random)["symbols"]}
    specs = specs_of(tensors)
    stored = stored_of(tensors, specs)
    whole = tensors["symbols"]
    if INTERPRETED:
        trials = [{0: 4, 1: 17, 2: 40}]
    else:
        end = len(stored["symbols"][2])
        places = [4, 5, 9, 10, 12, 14, 17, 18, 19, 40, end - 1, *random.integers(0, end, 300).tolist()]
        trials = [{2: place} for place in places]
    called = 0
    for trial in trials:
        damaged = list(stored["symbols"])
        for victim, place in trial.items():
            changed = bytearray(damaged[victim])
            changed[place] ^= 1 << int(random.integers(0, 8))
            damaged[victim] = bytes(changed)
        found, faults = restored({"symbols": damaged}, specs, device)
        for sample, own in enumerate(found["symbols"].split([spec.size for spec in specs["symbols"]])):
            if sample not in trial:
                assert not faults[sample]
                assert torch.equal(own, whole[sample])
            elif faults[sample]:
                called += 1
            else:
                try:
                    truth = decompress_planes(np.frombuffer(damaged[sample], np.uint8), len(own))
                except ValueError:
                    continue  # zstd is stricter about codes of which none is as long as it may be
                assert np.array_equal(own.numpy(), truth), f"byte {trial[sample]}"
    assert called >= sum(map(len, trials)) / 3


@on_devices
def test_bytes_of_any_kind_behind_a_frames_header_end_as_a_fault(device: str) -> None:
    random = np.random.default_rng(2)
    size = 900
    spec = TensorSpec(torch.uint8, (size,))
    head = bytes.fromhex("28b52ffda0") + size.to_bytes(4, "little")
    bodies = []
    for _ in range(SAMPLES):
        noise = random.integers(0, 256, 300).astype(np.uint8).tobytes()
        literals = (2 | 3 << 2 | size << 4 | (len(noise) - 6) << 22).to_bytes(5, "little")
        bodies.append(literals + bytes([int(random.integers(0, 256))]) + noise[6:-1] + b"\0")
    bodies[0] = literals + bytes([255]) + bytes(len(noise) - 7) + b"\0"
    stored = [head + (1 | 2 << 1 | len(body) << 3).to_bytes(3, "little") + body for body in bodies]
    found, faults = restored({"noise": stored}, {"noise": [spec] * SAMPLES}, device)
    assert all(faults)
    assert len(found["noise"]) == SAMPLES * size


@pytest.mark.gpu
def test_a_tensor_of_any_size_is_joined_from_its_planes() -> None:
    """A launch has at most 65,535 programs along any axis but the first."""
    from trio_ray.kv.kernels.decompress import JOINED, join_planes

    count = 65_536 * JOINED + 5
    planes = torch.randint(0, 256, (2 * count,), dtype=torch.uint8, device="cuda")
    out = torch.empty(count, dtype=torch.int16, device="cuda")
    join_planes(planes, torch.tensor([[0, count, 0]], device="cuda"), count, torch.int16, out)
    assert torch.equal(out.view(torch.uint8).view(count, 2).t().reshape(-1), planes)
