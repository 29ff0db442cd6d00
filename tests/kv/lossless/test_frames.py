"""What a GPU makes of coded bytes is what the lossless stage reads; on a GPU, and in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.interpreter import INTERPRETED, on_devices
from tests.kv.bases import make_basis, make_segments
from tests.kv.lossless.plain_frames import frame_of, tables_of
from tests.kv.prefixes import CODECS, FINGERPRINT, KEY, assert_same, codec_of, random_prefix
from trio_ray.kv.batch import PrefixBatch
from trio_ray.kv.codecs.codec import Codec, CodedSegments
from trio_ray.kv.codecs.registry import parse_spec
from trio_ray.kv.codecs.transform import Transform, TransformSpec
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import code_batch, new_memory, plain_tensors
from trio_ray.kv.lossless import blocks as frame_blocks
from trio_ray.kv.lossless import frames, tables_in_use
from trio_ray.kv.lossless.blocks import cut_pieces
from trio_ray.kv.lossless.frames import FrameMaker, PlainTensor, frame_maker
from trio_ray.kv.lossless.huffman import HuffmanTable
from trio_ray.kv.lossless.planes import TensorSpec, split_planes
from trio_ray.kv.lossless.zstd import decompress
from trio_ray.kv.restore import read_container
from trio_ray.lab.codecs.speed import count_launches
from trio_ray.precompute.host_batch import HostBatch, HostGroup
from trio_ray.precompute.host_memory import HostMemory
from trio_ray.precompute.stored_batch import StoredBatch
from trio_ray.precompute.storing_messages import pack_batch, unpack_batch


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted programs are slow, and that a frame has many blocks is what matters."""
    if INTERPRETED:
        monkeypatch.setattr(frame_blocks, "BLOCK", 4096)


LARGEST = frame_blocks.BLOCK
MAGIC = bytes.fromhex("28b52ffd")
SAMPLES, ROWS = (2, (70, 30, 20)) if INTERPRETED else (3, (90, 60, 50))
"""Of a batch of prefixes: enough for frames that are smaller than their bytes."""

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


def check(maker: FrameMaker, data: Tensor, runs: Sequence[Sequence[int]], device: str) -> list[tuple[int, int]]:
    """That each sample's bytes come back from the frames of a tensor of bytes in such stretches; its bytes, and those
    of its frame.
    """
    pieces = [sum(own) for own in runs]
    (stored,) = made_by(maker, [PlainTensor("bytes", data, pieces, runs)], device).values()
    for piece, own in zip(data.split(pieces), stored, strict=True):
        assert len(own) <= len(piece)
        assert torch.equal(decompress(own.numpy(), TensorSpec(torch.uint8, (len(piece),))), piece)
    return [(len(piece), len(own)) for piece, own in zip(data.split(pieces), stored, strict=True)]


def made_by(maker: FrameMaker, tensors: Sequence[PlainTensor], device: str) -> dict[str, list[Tensor]]:
    """By name what is stored of each sample."""
    frames = maker.frames(plain._replace(tensor=plain.tensor.to(device)) for plain in tensors)
    samples = [group.copied(Tensor.cpu).split() for group in frames]
    return {name: [own[name] for own in group] for group in samples for name in group[0]}


def mixed(seed: int) -> list[PlainTensor]:
    """Tensors of a batch of three samples: of every width, in stretches, noise, and one of a single sample."""
    random = np.random.default_rng(seed)
    runs = [[900, 300], [2000, 0], [4096 + seed, 100]]
    rows = [7, 0, 3 + seed]
    wide = torch.from_numpy(random.normal(1, 2, (sum(rows), 2, 41)).astype(np.float32))
    return [
        PlainTensor("codes", made([[70 * count] for count in rows], ("bell",), seed).view(-1, 70), rows),
        PlainTensor("symbols", made(runs, ("bell", "rare"), seed), [sum(own) for own in runs], runs),
        PlainTensor("grids", (300 * wide).round().int(), rows),
        PlainTensor("states", wide.bfloat16(), rows),
        PlainTensor("floats", wide[:3] * 2, [0, 0, 3]),
        PlainTensor("noise", made([[50 * count] for count in rows], ("noise",), seed).view(-1, 50), rows),
    ]


@on_devices
def test_frames_of_a_batch_are_those_that_plain_python_makes_of_each_tensor(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, whether all tensors are made into frames at once (the first and the third batch) or one after the
    other; and zstd reads them.
    """
    from trio_ray.kv.kernels import frames as kernels

    monkeypatch.setattr(frame_blocks, "BLOCK", 1024)
    monkeypatch.setattr(kernels, "LAID_OUT", 4)
    maker = FrameMaker()
    tables: dict[str, list[HuffmanTable | None]] = {}
    for number, at_once in enumerate((frames.AT_ONCE, 1, frames.AT_ONCE)):
        monkeypatch.setattr(frames, "AT_ONCE", at_once)
        tensors = mixed(number)
        stored = made_by(maker, tensors, device)
        assert set(stored) == {plain.name for plain in tensors}
        for plain in tensors:
            pieces = plain.tensor.split(list(plain.pieces))
            planes = [split_planes(piece).numpy() for piece in pieces]
            if number < 2:  # the third batch is coded by the tables of the second
                tables[plain.name] = tables_of(planes, plain.stretches.tolist())
            for piece, data, runs, found in zip(pieces, planes, plain.stretches, stored[plain.name], strict=True):
                assert bytes(found.numpy()) == frame_of(data, runs.tolist(), tables[plain.name]), plain.name
                assert torch.equal(decompress(found.numpy(), TensorSpec(piece.dtype, tuple(piece.shape))), piece)


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
    check(maker, data, runs, device)
    # The next batch is coded by the same tables, and holds bytes that they were not made for.
    other = made(runs[::-1], kinds, seed=1).flip(0)
    backwards = [own[::-1] for own in runs]
    check(maker, other, backwards, device)


@on_devices
def test_what_no_code_makes_smaller_is_stored_as_it_is(device: str) -> None:
    runs = [[6000], [9000]]
    data = made(runs, ("noise",))
    sizes = check(FrameMaker(), data, runs, device)
    assert all(stored == plain for plain, stored in sizes)


@on_devices
def test_codes_take_little_more_than_the_bytes_entropy(device: str) -> None:
    length = 12000 if INTERPRETED else 30000
    runs = [[length, length]] * 2
    data = made(runs, ("bell", "wide"))
    sizes = check(FrameMaker(), data, runs, device)
    stretches = data.view(2, 2, length).transpose(0, 1).reshape(2, -1)
    shares = torch.stack([torch.bincount(own, minlength=256) for own in stretches]) / (2 * length)
    entropy = float(-(shares * shares.clamp_min(1e-9).log2()).sum()) * 2 * length / 8
    stored = sum(stored for _, stored in sizes)
    assert entropy < stored < 1.1 * entropy


@on_devices
@pytest.mark.parametrize("over", [0, 1, 300])
def test_blocks_of_the_largest_size_are_read(over: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_blocks, "BLOCK", LARGEST)
    runs = [[LARGEST + over]]
    data = made(runs, ("bell",))
    (sizes,) = check(FrameMaker(), data, runs, device)
    assert sizes[1] < 0.7 * sizes[0]


@on_devices
def test_tables_follow_a_corpus_that_changes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made of the first batch, the second, the fourth and so on, and at least so often."""
    monkeypatch.setattr(tables_in_use, "BATCHES_A_TABLE", 7)
    runs, maker = [[8000]], FrameMaker()
    bell, rare = made(runs, ("bell",)), made(runs, ("rare",))
    sizes = [check(maker, data, runs, device)[0][1] for data in (bell, bell, rare, rare, bell, bell, bell)]
    assert sizes[3] < 0.8 * sizes[2], "the fourth batch made new tables"
    assert sizes[4] == sizes[5] > 1.05 * sizes[6] == 1.05 * sizes[0], "and the seventh"


@on_devices
def test_a_run_that_earlier_batches_lacked_gets_its_table_at_once(device: str) -> None:
    maker, kinds, wanted = FrameMaker(), ("bell", "rare"), [[4000, 16000]]
    for runs in ([[20000, 100]], [[20000, 0]]):
        data = made(runs, kinds)
        check(maker, data, runs, device)
    data = made(wanted, kinds)
    late, fresh = (check(each, data, wanted, device) for each in (maker, FrameMaker()))
    assert late == fresh


@on_devices
def test_wide_elements_become_planes_of_bytes_and_what_is_empty_stays(device: str) -> None:
    random = torch.Generator().manual_seed(0)
    states = torch.randn((1200, 2, 4), generator=random).bfloat16()
    pieces = {"states": (700, 500), "none": (0, 0)}
    coded = CodedSegments({"states": states, "none": torch.empty((0, 4), dtype=torch.uint8)}, pieces)
    tensors = list(plain_tensors(3, coded))
    assert [plain.name for plain in tensors] == ["3.states"], "there is nothing of the other to compress"
    (stored,) = made_by(FrameMaker(), tensors, device).values()
    for own, piece in zip(stored, states.split([700, 500]), strict=True):
        assert torch.equal(decompress(own.numpy(), TensorSpec(torch.bfloat16, tuple(piece.shape))), piece)
        assert len(own) < 0.85 * piece.numel() * 2, "the plane of signs and exponents shrinks"


@on_devices
@pytest.mark.parametrize("choice", ["mixed", "transform"] if INTERPRETED else ["raw", "mixed", "transform"])
def test_a_container_of_frames_reads_like_one_without(choice: str, device: str) -> None:
    prefix = random_prefix(rows=ROWS)
    if choice == "transform":
        codec: Codec = Transform(TransformSpec(basis="0" * 32), make_basis(0.01))
        drawn = [segment.split()[0] for segment in make_segments(1, seed=2)]
        made_up = tuple(replace(own, position=torch.arange(own.rows, dtype=torch.int32)) for own in drawn)
        prefix = replace(prefix, segments=made_up, kept=prefix.kept[:1])
    else:
        codec = codec_of(CODECS[choice])
    batch = PrefixBatch.of([prefix.on_device(torch.device(device))] * SAMPLES)
    without, framed = (code_batch(batch, codec, maker).on_host(new_memory) for maker in (None, FrameMaker()))
    if device == "cuda":
        torch.cuda.synchronize()
    assert len(framed.frames) == 1, "all tensors of the batch go through the kernels together"
    assert not without.frames
    own = [tensor for sample in framed.split() for tensor in sample.frames.values()]
    worth_it = any(bytes(tensor[:4].tolist()) == MAGIC for tensor in own)
    assert worth_it or choice == "transform", "whose few rows here are shorter than a table's description"
    for plain, own in zip(without.split(), framed.split(), strict=True):
        truth, read = (
            read_container(bytes(write_container(coded, codec.settings, KEY, FINGERPRINT)), codec, key=KEY)
            for coded in (plain, own)
        )
        assert_same(read, truth)


def test_blocks_cover_every_stretch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_blocks, "BLOCK", 1000)
    blocks, pieces = cut_pieces([np.array([[2500, 0, 300], [100, 999, 1001]]), np.array([[0], [256]])], [5, 2])
    start, length, table, piece = blocks.T.tolist()
    assert start == [0, 1000, 2000, 2500, 2800, 2900, 3899, 4899, 4900]
    assert length == [1000, 1000, 500, 300, 100, 999, 1000, 1, 256]
    assert table == [5, 5, 5, 7, -1, 6, 7, 7, 2]
    assert piece == [0, 0, 0, 0, 1, 1, 1, 1, 3]
    assert pieces.tolist() == [[0, 4, 0, 2800], [4, 8, 2800, 2100], [8, 8, 4900, 0], [8, 9, 4900, 256]]


@on_devices
def test_frames_come_through_the_memory_that_a_storing_process_shares(device: str) -> None:
    codec = codec_of("int8")
    prefix = random_prefix(rows=ROWS).on_device(torch.device(device))
    coded = code_batch(PrefixBatch.of([prefix] * SAMPLES), codec, FrameMaker())
    memory = HostMemory(pinned=device == "cuda")
    lease = memory.lease(1 << 20)
    stored = StoredBatch(coded, torch.ones(SAMPLES, dtype=torch.bool, device=device)).on_host(lease.allocate)
    if device == "cuda":
        torch.cuda.synchronize()
    sent = HostBatch([HostGroup([], stored, 1.0, lease.block)])
    got = unpack_batch(pack_batch(sent), {lease.block.number: lease.block})
    here, there = (
        [bytes(write_container(sample.coded, codec.settings, KEY, FINGERPRINT)) for sample in batch.split()]
        for batch in (stored, got.groups[0].batch)
    )
    assert here == there
    assert any(MAGIC in container for container in here)


@pytest.mark.gpu
def test_a_batch_takes_few_launches_and_nothing_waits_for_the_gpu() -> None:
    """Of whatever many tensors and samples, once there are tables: the third batch makes none."""
    codec, maker = codec_of("int4"), FrameMaker()
    batch = PrefixBatch.of([random_prefix(rows=ROWS).on_device(torch.device("cuda"))] * SAMPLES)
    coded = [codec.encode(segment) for segment in batch.segments]
    tensors = [plain for number, own in enumerate(coded) for plain in plain_tensors(number, own)]
    assert len(tensors) > 20
    for _ in range(2):
        maker.frames(tensors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        maker.frames(tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    maker.frames(tensors)  # the fourth makes tables
    assert 0 < count_launches(lambda: maker.frames(tensors)) <= 12


@pytest.mark.gpu
def test_a_tensor_of_more_than_two_gib_is_made_into_frames() -> None:
    """It is a group of its own, and what lies behind the first two GiB is where it belongs."""
    large, last = (1 << 30) + 8, torch.randn(5000).bfloat16()
    tensor = torch.zeros(large + len(last), dtype=torch.bfloat16, device="cuda")
    tensor[large:] = last
    before = PlainTensor("bytes", torch.zeros(300, dtype=torch.uint8, device="cuda"), [100, 200])
    small, own = FrameMaker().frames([before, PlainTensor("states", tensor, [large, len(last)])])
    assert (small.names, own.names) == (("bytes",), ("states",))
    start, stop = own.ends.flatten().tolist()
    assert start < large // 2, "the plane of zeros takes a bit a byte"
    stored = own.data[start:stop].cpu().numpy()
    assert torch.equal(decompress(stored, TensorSpec(torch.bfloat16, (len(last),))), last)


@pytest.mark.gpu
def test_a_gpu_makes_frames_at_the_level_that_is_the_default() -> None:
    device = torch.device("cuda")
    assert frame_maker(parse_spec("int4"), device) is not None
    assert frame_maker(parse_spec({"name": "int4", "zstd": 2}), device) is None
    assert frame_maker(parse_spec({"name": "int4", "zstd": 0}), device) is None


def test_without_a_gpu_the_host_does_the_lossless_stage() -> None:
    assert frame_maker(parse_spec("int4"), torch.device("cpu")) is None
