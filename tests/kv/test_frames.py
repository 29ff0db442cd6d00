"""What a GPU makes of coded bytes is what the lossless stage reads: on a GPU, and where there is none, in Triton's
interpreter, which is chosen before Triton is imported: in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kv.bases import make_basis, make_segments
from tests.kv.prefixes import CODECS, FINGERPRINT, KEY, assert_same, codec_of, random_prefix
from trio_ray.kv import frames
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codec import Codec, CodedSegments
from trio_ray.kv.container import read_container, write_container
from trio_ray.kv.encode import code_batch
from trio_ray.kv.frames import FrameMaker, Frames, cut
from trio_ray.kv.lossless import expand
from trio_ray.kv.spec import TransformSpec
from trio_ray.kv.transform import Transform

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

on_devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="runs below, in a process of its own")),
    ],
)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_hold_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "cpu", str(Path(__file__))]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[2], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted programs are slow, and a frame of many blocks is what matters."""
    if INTERPRETED:
        monkeypatch.setattr(frames, "BLOCK", 4096)


KINDS = {
    "bell": lambda random, count: random.normal(127, 6, count).round().clip(0, 254),
    "wide": lambda random, count: random.normal(127, 30, count).round().clip(0, 254),
    "noise": lambda random, count: random.integers(0, 256, count),
    "rare": lambda random, count: np.where(random.random(count) < 0.9, 121, random.integers(0, 243, count)),
    "one": lambda random, count: np.full(count, 7),
}


def made(runs: Sequence[Sequence[int]], kinds: Sequence[str], seed: int = 0) -> Tensor:
    """Bytes of samples whose stretches are of these kinds."""
    random = np.random.default_rng(seed)
    parts = [KINDS[kind](random, count) for own in runs for count, kind in zip(own, kinds, strict=True)]
    return torch.from_numpy(np.concatenate(parts).astype(np.uint8))


def pieces(runs: Sequence[Sequence[int]]) -> tuple[list[int], Sequence[Sequence[int]]]:
    """What `frames` is told of bytes in such stretches."""
    return [sum(own) for own in runs], runs


def check(made_frames: Frames, data: Tensor, runs: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """That each sample's bytes come back; its bytes, and those of its frame."""
    on_host = Frames(made_frames.data.cpu(), made_frames.ends.cpu())
    cut_up = data.split(pieces(runs)[0])
    stored = on_host.split()
    for piece, own in zip(cut_up, stored, strict=True):
        assert len(own) <= len(piece)
        assert torch.equal(expand(own, torch.uint8, (len(piece),)), piece)
    return [(len(piece), len(own)) for piece, own in zip(cut_up, stored, strict=True)]


@on_devices
@pytest.mark.parametrize("scale", [1, pytest.param(40, marks=pytest.mark.skipif(INTERPRETED, reason="is slow there"))])
@pytest.mark.parametrize(
    ("runs", "kinds"),
    [
        ([[5000, 3000], [9000, 100], [0, 0], [4096, 4097]], ("bell", "rare")),
        ([[20000, 0, 500], [300, 200, 256]], ("bell", "noise", "rare")),
        ([[5000, 3000], [3, 0], [0, 1]], ("noise", "bell")),
        ([[700], [1], [0]], ("one",)),
        ([[255], [256], [257], [4095]], ("bell",)),
    ],
)
def test_frames_hold_what_they_were_made_of(
    runs: list[list[int]], kinds: tuple[str, ...], scale: int, device: str
) -> None:
    runs = [[scale * count for count in own] for own in runs]
    data, maker = made(runs, kinds), FrameMaker()
    check(maker.frames("first", data.to(device), *pieces(runs)), data, runs)
    # The next batch is coded by the same tables, and holds bytes that they were not made for.
    other = made(runs[::-1], kinds, seed=1).flip(0)
    backwards = [own[::-1] for own in runs]
    check(maker.frames("first", other.to(device), *pieces(backwards)), other, backwards)


@on_devices
def test_what_no_code_makes_smaller_is_stored_as_it_is(device: str) -> None:
    runs = [[6000], [9000]]
    data = made(runs, ("noise",))
    sizes = check(FrameMaker().frames("noise", data.to(device), *pieces(runs)), data, runs)
    assert all(stored == plain for plain, stored in sizes)


@on_devices
def test_codes_take_little_more_than_the_bytes_entropy(device: str) -> None:
    runs = [[30000, 30000]] * 2
    data = made(runs, ("bell", "wide"))
    sizes = check(FrameMaker().frames("both", data.to(device), *pieces(runs)), data, runs)
    stretches = data.view(2, 2, 30000).transpose(0, 1).reshape(2, -1)
    shares = torch.stack([torch.bincount(own, minlength=256) for own in stretches]) / 60000
    entropy = float(-(shares * shares.clamp_min(1e-9).log2()).sum()) * 60000 / 8
    stored = sum(stored for _, stored in sizes)
    assert entropy < stored < 1.1 * entropy


@on_devices
def test_tables_follow_a_corpus_that_changes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "BATCHES_A_TABLE", 2)
    runs, maker = [[8000]], FrameMaker()
    first, later = made(runs, ("bell",)), made(runs, ("rare",))
    sizes = [
        check(maker.frames("all", data.to(device), *pieces(runs)), data, runs)[0][1]
        for data in (first, later, later, later)
    ]
    assert sizes[2] == sizes[3] < 0.8 * sizes[1]


@on_devices
def test_wide_elements_become_planes_of_bytes_and_what_is_empty_stays(device: str) -> None:
    random = torch.Generator().manual_seed(0)
    states = torch.randn((1200, 2, 4), generator=random).bfloat16()
    coded = CodedSegments(
        {"states": states.to(device), "none": torch.empty((0, 4), dtype=torch.uint8)},
        {"states": (700, 500), "none": (0, 0)},
    )
    framed = coded.framed(FrameMaker(), "0")
    assert set(framed.tensors) == {"none"}
    assert set(framed.frames) == {"states"}
    assert [set(own) for own in framed.split()] == [{"none"}] * 2
    frames_ = framed.frames["states"]
    stored = Frames(frames_.data.cpu(), frames_.ends.cpu()).split()
    for own, piece in zip(stored, states.split([700, 500]), strict=True):
        assert torch.equal(expand(own, torch.bfloat16, tuple(piece.shape)), piece)
        assert len(own) < 0.85 * piece.numel() * 2, "the plane of signs and exponents shrinks"


@on_devices
@pytest.mark.parametrize("choice", ["raw", "fp8", "int4", "mixed", "transform"])
def test_a_container_of_frames_reads_like_one_without(choice: str, device: str) -> None:
    prefix = random_prefix(rows=(90, 60, 50))
    if choice == "transform":
        codec: Codec = Transform(TransformSpec(basis="0" * 32), make_basis(0.01))
        drawn = [segment.split()[0] for segment in make_segments(1, seed=2)]
        made_up = tuple(replace(own, position=torch.arange(own.rows, dtype=torch.int32)) for own in drawn)
        prefix = replace(prefix, segments=made_up, kept=prefix.kept[:1])
    else:
        codec = codec_of(CODECS[choice])
    batch = PrefixBatch.of([prefix.on_device(torch.device(device))] * 3)
    without, framed = (
        code_batch(batch, codec, maker).on_host(lambda shape, dtype: torch.empty(shape, dtype=dtype))
        for maker in (None, FrameMaker())
    )
    if device == "cuda":
        torch.cuda.synchronize()
    assert all(segment.frames for segment in framed.segments)
    assert not any(segment.frames for segment in without.segments)
    for plain, own in zip(without.split(), framed.split(), strict=True):
        truth, read = (
            read_container(bytes(write_container(coded, codec.settings, KEY, FINGERPRINT)), codec, key=KEY)
            for coded in (plain, own)
        )
        assert_same(read, truth)


def test_blocks_cover_every_stretch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "BLOCK", 1000)
    blocks = cut([[2500, 0, 300], [100, 999, 1001]], torch.device("cpu"))
    assert blocks.start.tolist() == [0, 1000, 2000, 2500, 2800, 2900, 3899, 4899]
    assert blocks.length.tolist() == [1000, 1000, 500, 300, 100, 999, 1000, 1]
    assert blocks.table.tolist() == [0, 0, 0, 2, -1, 1, 2, 2]
    assert blocks.sample.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert blocks.first.tolist() == [0, 4, 8]
    assert blocks.pieces.tolist() == [2800, 2100]
