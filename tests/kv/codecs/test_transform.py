"""The transform codec: what it gives back, and that its bytes depend on nothing but its input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import xxhash

from tests.kv.bases import LEADS, make_basis, make_segments
from tests.kv.prefixes import batch_of, restored
from trio_ray.kv.batch import SegmentBatch, SegmentShape
from trio_ray.kv.codecs.codec import CodecError
from trio_ray.kv.codecs.registry import make_codec
from trio_ray.kv.codecs.transform import TENSOR, Transform, TransformSpec
from trio_ray.kv.codecs.transform_basis import write_basis
from trio_ray.kv.codecs.transform_integers import sums_by_bytes, sums_of_products
from trio_ray.kv.prefix import Segment

ZEROS = {0, 128, 127, 112, 121}
"""The bytes of symbols that are all 0: two of a wide one, one of a byte, of two nibbles and of five trits."""


def transform(step: float = 0.02) -> Transform:
    return Transform(TransformSpec(basis="0" * 32), make_basis(step))


def decoded(codec: Transform, batch: SegmentBatch) -> list[Segment]:
    return restored(codec, codec.encode(batch).tensors, SegmentShape.of(batch), batch.position, batch.text).split()


def relative_error(codec: Transform, batch: SegmentBatch) -> float:
    """Of rows that are not ahead of the image."""
    error = size = 0.0
    for before, after in zip(batch.split(), decoded(codec, batch), strict=True):
        for old, new in ((before.keys, after.keys), (before.values, after.values)):
            difference = (new.double() - old.double())[:, LEADS:]
            error += float(difference.square().sum())
            size += float(old.double()[:, LEADS:].square().sum())
    return (error / size) ** 0.5


@pytest.mark.parametrize("number", [0, 1])
def test_states_come_back_and_the_closer_the_finer_the_step(number: int) -> None:
    batch = make_segments(5, seed=2)[number]
    coarse, fine = (relative_error(transform(step), batch) for step in (1.0, 0.02))
    assert fine < 0.012
    assert 4 * fine < coarse < 0.5


def test_a_step_bounds_the_error_of_every_component() -> None:
    """With all components kept and equal weights, the mean square error is at most that of one step's rounding."""
    segments = make_segments(64, seed=3, dtype=torch.float32)
    batch, step = segments[1], 0.02
    codec = Transform(TransformSpec(basis="0" * 32), make_basis(step, segments))
    squares = [
        (new.values.double() - old.values.double())[:, LEADS:].square().mean()
        for old, new in zip(batch.split(), decoded(codec, batch), strict=True)
    ]
    assert float(torch.stack(squares).mean()) < 1.3 * step**2 / 12


@pytest.mark.parametrize("number", [0, 1])
def test_shape_dtype_and_layout_are_as_promised(number: int) -> None:
    codec, batch = transform(), make_segments(4, seed=2)[number]
    for piece, shape, before, after in zip(
        codec.encode(batch).split(), SegmentShape.of(batch), batch.split(), decoded(codec, batch), strict=True
    ):
        assert {name: (t.dtype, tuple(t.shape)) for name, t in piece.items()} == {
            name: (spec.dtype, spec.shape) for name, spec in codec.layout(shape).items()
        }
        assert after.keys.shape == before.keys.shape
        assert after.keys.dtype == after.values.dtype == batch.keys.dtype
        assert after.first_layer == before.first_layer


def test_a_samples_bytes_do_not_depend_on_its_batch() -> None:
    codec = transform()
    for batch in make_segments(5, seed=4):
        together = codec.encode(batch).split()
        for piece, segment in zip(together, batch.split(), strict=True):
            alone = codec.encode(batch_of([segment])).split()[0]
            assert torch.equal(piece[TENSOR], alone[TENSOR])


@pytest.mark.parametrize("number", [0, 1])
def test_a_batch_decodes_as_its_samples_do_alone(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the order in which a product of floats is added up; also where only a few rows are decoded at once."""
    for name, value in (("RESTORED_AT_ONCE", 7 * 64), ("RESTORED_ROWS", 1)):
        monkeypatch.setattr(f"trio_ray.kv.codecs.transform.{name}", value)
    codec, batch = transform(), make_segments(5, seed=4, dtype=torch.float32)[number]
    for ours, segment in zip(decoded(codec, batch), batch.split(), strict=True):
        alone = decoded(codec, batch_of([segment]))[0]
        torch.testing.assert_close(ours.keys, alone.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.values, alone.values, rtol=1e-5, atol=1e-5)


def test_bytes_do_not_depend_on_how_many_rows_are_coded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, batch = transform(), make_segments(5, seed=4)[1]
    whole = codec.encode(batch).tensors[TENSOR]
    monkeypatch.setattr("trio_ray.kv.codecs.transform.CHUNK", 7 * 64)
    assert torch.equal(codec.encode(batch).tensors[TENSOR], whole)


def test_sums_are_equal_in_every_order_and_type_of_adding() -> None:
    """What makes the bytes the same on all machines: float64, 64-bit, reversed 32-bit and 8-bit products agree."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-32767, 32768, (45, 4096), generator=generator, dtype=torch.int32)
    rows[0], rows[1] = 32767, -32767
    matrix = torch.randint(-127, 128, (24, 4096), generator=generator, dtype=torch.int8)
    matrix[0], matrix[1] = 127, -127
    expected = rows.long() @ matrix.long().T
    assert int(expected.abs().max()) > 1 << 33
    assert torch.equal(sums_of_products(rows, matrix), expected)
    assert torch.equal(sums_by_bytes(rows, matrix), expected)
    chunks = zip(rows.flip(1).split(64, 1), matrix.int().flip(1).split(64, 1), strict=True)
    assert torch.equal(sum((r @ m.T).long() for r, m in chunks), expected)


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 61])
@pytest.mark.parametrize("components", [1, 8, 13])
def test_an_8_bit_product_takes_any_number_of_rows_and_components(components: int, rows: int) -> None:
    """A GPU's wants whole tiles of both."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-32767, 32768, (rows, 64), generator=generator, dtype=torch.int32)
    matrix = torch.randint(-127, 128, (components, 64), generator=generator, dtype=torch.int8)
    assert torch.equal(sums_by_bytes(numbers, matrix), sums_of_products(numbers, matrix))


def test_the_bytes_are_those_of_every_other_machine() -> None:
    """A basis and states of whole numbers alone, so that no fit enters, give bytes whose hash is written down here."""
    basis = make_basis(0.1)

    def whole(group, number):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(number)

        def part(old):  # type: ignore[no-untyped-def]
            channels = old.matrix.shape[1]
            return replace(
                old,
                counts=(1, 2, 3, 4),
                center=torch.randint(-9, 9, (channels,), generator=generator, dtype=torch.int32),
                fold=torch.randint(1, 1 << 15, (channels,), generator=generator, dtype=torch.int32),
                matrix=torch.randint(-127, 128, (10, channels), generator=generator, dtype=torch.int8),
                multiplier=torch.tensor([1 << 23, *[1 << 20] * 2, *[1 << 16] * 3, *[1 << 14] * 4], dtype=torch.int32),
                offset=torch.randint(-999, 999, (len(old.mean), 10), generator=generator),
                mean=torch.zeros_like(old.mean),
            )

        return replace(
            group, exponent=torch.full_like(group.exponent, 8), image=part(group.image), text=part(group.text)
        )

    groups = tuple(whole(group, number) for number, group in enumerate(basis.groups))
    codec = Transform(TransformSpec(basis="0" * 32), replace(basis, groups=groups))
    digest = xxhash.xxh3_128()
    for batch in make_segments(3, seed=5):
        size = batch.keys.numel()
        states = torch.randint(-2000, 2000, (2, size), generator=torch.Generator().manual_seed(size)).float() / 256
        batch = replace(batch, keys=states[0].view_as(batch.keys), values=states[1].view_as(batch.values))
        digest.update(codec.encode(batch).tensors[TENSOR].numpy().tobytes())
    assert digest.hexdigest() == "78a32fa359dc53f81af0ad36abe4fb46"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_gives_nearly_the_same_numbers_back(dtype: torch.dtype) -> None:
    codec = transform()
    for batch in make_segments(9, seed=6, dtype=dtype):
        stored = codec.encode(batch).tensors[TENSOR].cuda()
        back = restored(codec, {TENSOR: stored}, SegmentShape.of(batch), batch.position, batch.text)
        truth = restored(codec, codec.encode(batch).tensors, SegmentShape.of(batch), batch.position, batch.text)
        assert back.keys.is_cuda
        torch.testing.assert_close(back.keys.cpu(), truth.keys, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(back.values.cpu(), truth.values, rtol=1e-2, atol=1e-2)


def test_rows_that_are_the_same_in_every_sample_cost_nothing_and_come_back() -> None:
    """Text ahead of the image has a mean of its own, sinks with huge entries among it."""
    codec = transform()
    for batch in make_segments(4, seed=7):
        for before, after in zip(batch.split(), decoded(codec, batch), strict=True):
            for old, new in ((before.keys, after.keys), (before.values, after.values)):
                torch.testing.assert_close(new[:, :LEADS], old[:, :LEADS], rtol=2e-2, atol=0.2)
        first = batch.split()[0]
        only = Segment(
            first.first_layer,
            *(x[:, :LEADS] for x in (first.keys, first.values)),
            *(x[:LEADS] for x in (first.position, first.text)),
        )
        stored = codec.encode(batch_of([only])).tensors[TENSOR]
        assert set(stored.tolist()) <= ZEROS


def test_what_is_no_number_damages_nothing_else() -> None:
    codec, batch = transform(), make_segments(3, seed=8)[1]
    keys = batch.keys.clone()
    keys[0, 4, 0, 0], keys[0, 4, 1, 1], keys[1, 4, 0, 2] = float("nan"), float("inf"), float("-inf")
    odd = replace(batch, keys=keys)
    after, usual = decoded(codec, odd), decoded(codec, batch)
    assert all(segment.keys.isfinite().all() for segment in after)
    assert torch.equal(after[1].keys, usual[1].keys)
    assert torch.equal(after[0].keys[:, 5:], usual[0].keys[:, 5:])


def test_a_sample_without_images_or_without_text_behind_them_is_coded() -> None:
    codec, batch = transform(), make_segments(1, seed=9)[1]
    segment = batch.split()[0]
    for rows in (segment.text, ~segment.text):
        part = Segment(1, segment.keys[:, rows], segment.values[:, rows], segment.position[rows], segment.text[rows])
        after = decoded(codec, batch_of([part]))[0]
        assert after.keys.shape == part.keys.shape


def test_layers_that_the_basis_does_not_group_so_are_refused() -> None:
    codec, (first, second) = transform(), make_segments(2, seed=1)
    with pytest.raises(CodecError, match="prune points"):
        codec.encode(replace(second, keys=second.keys[:1], values=second.values[:1]))
    with pytest.raises(CodecError, match="heads"):
        codec.encode(replace(first, keys=first.keys[..., :4], values=first.values[..., :4]))


def test_the_codec_is_made_from_its_spec_and_the_bytes_of_its_basis() -> None:
    data = write_basis(make_basis(0.02))
    digest = xxhash.xxh3_128_hexdigest(data)
    codec = make_codec({"name": "transform", "basis": digest}, {digest: data}.__getitem__)
    batch = make_segments(2, seed=2)[1]
    assert codec.spec["basis"] == digest
    assert torch.equal(codec.encode(batch).tensors[TENSOR], transform().encode(batch).tensors[TENSOR])
    with pytest.raises(CodecError, match="basis"):
        make_codec({"name": "transform", "basis": digest})


def test_whole_groups_are_as_few_as_hold_enough_layers() -> None:
    """Groups of layers 0, 1 and 2, and 3; behind the last one there are no more."""
    codec = transform()
    asked = {(0, 1): 1, (0, 2): 3, (1, 1): 2, (1, 3): 3, (3, 2): 1}
    assert {places: codec.whole_groups(*places) for places in asked} == asked
