"""Every codec: what it stores is what its layout promises, the same in every batch, and comes back in its own shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kv.prefixes import (
    CODECS,
    TEXTS,
    assert_same_frame,
    batch_of,
    code,
    codec_of,
    contained,
    random_prefix,
    restored,
)
from trio_ray.kv.batch import PrefixBatch, SegmentShape
from trio_ray.kv.codecs.codec import Codec, CodecError
from trio_ray.kv.codecs.registry import make_codec
from trio_ray.kv.container import write_container
from trio_ray.kv.encode import code_batch
from trio_ray.kv.restore import read_container

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=list(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return codec_of(CODECS[request.param])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stored_tensors_are_those_of_the_layout(codec: Codec, dtype: torch.dtype) -> None:
    coded = code(random_prefix(dtype), codec)
    for shape, tensors in zip(coded.shapes, coded.segments, strict=True):
        layout = {name: (spec.dtype, spec.shape) for name, spec in codec.layout(shape).items()}
        assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == layout
        assert all(tensor.is_contiguous() for tensor in tensors.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_segment_comes_back_in_its_own_shape_and_dtype(codec: Codec, dtype: torch.dtype) -> None:
    prefix = random_prefix(dtype)
    assert_same_frame(read_container(contained(prefix, codec), codec), prefix)


def test_coding_what_was_decoded_loses_little_more(codec: Codec) -> None:
    """Decoded numbers are on their grid or next to it: a second pass moves no element by more than the first one's
    largest error.
    """
    prefix = random_prefix()
    once = read_container(contained(prefix, codec), codec)
    twice = read_container(contained(once, codec), codec)
    for a, b, c in zip(prefix.segments, once.segments, twice.segments, strict=True):
        assert (c.keys - b.keys).abs().max() <= (b.keys - a.keys).abs().max() + 1e-6
        assert (c.values - b.values).abs().max() <= (b.values - a.values).abs().max() + 1e-6


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_each_samples_bytes_are_those_it_has_alone(data: st.DataObject) -> None:
    codec = codec_of(CODECS[data.draw(st.sampled_from(list(CODECS)))])
    dtype = data.draw(st.sampled_from(DTYPES))
    layers = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    heads, dim = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([4, 8, 12, 32]))
    prefixes = []
    for seed in range(data.draw(st.integers(1, 4))):
        length = st.integers(TEXTS, 50)
        rows = sorted(data.draw(st.lists(length, min_size=len(layers), max_size=len(layers))), reverse=True)
        prefixes.append(random_prefix(dtype, rows, layers, heads, dim, seed))
    together = code_batch(PrefixBatch.of(prefixes), codec).split()
    for prefix, coded in zip(prefixes, together, strict=True):
        stored = bytes(write_container(coded, codec.settings, "key", "f"))
        assert stored == write_container(code(prefix, codec), codec.settings, "key", "f")
        assert_same_frame(read_container(stored, codec), prefix)


def test_a_batch_decodes_as_its_samples_do_alone(codec: Codec) -> None:
    """Bit for bit, with samples of any length beside each other, one of them without image rows."""
    sizes = [(30, 17, 9), (40, TEXTS, TEXTS), (TEXTS, TEXTS, TEXTS), (33, 33, 20)]
    prefixes = [random_prefix(torch.bfloat16, rows, seed=seed) for seed, rows in enumerate(sizes)]
    batch = PrefixBatch.of(prefixes)
    coded = code_batch(batch, codec)
    for number, (segment, source) in enumerate(zip(coded.segments, batch.segments, strict=True)):
        shapes = coded.shapes[number]
        together = restored(codec, segment.tensors, shapes, source.position, source.text)
        for ours, piece, shape, own in zip(together.split(), segment.split(), shapes, source.split(), strict=True):
            alone = restored(codec, piece, [shape], own.position, own.text)
            assert torch.equal(ours.keys, alone.keys)
            assert torch.equal(ours.values, alone.values)


def test_a_sample_without_image_rows_is_coded_too(codec: Codec) -> None:
    prefix = random_prefix(rows=(30, TEXTS, TEXTS))
    assert_same_frame(read_container(contained(prefix, codec), codec), prefix)


def test_a_batch_need_not_be_contiguous(codec: Codec) -> None:
    """A prefill may hand over views with heads and channels in another order in memory."""
    batch = batch_of([random_prefix().segments[1]])
    turned = replace(batch, keys=batch.keys.transpose(2, 3).contiguous().transpose(2, 3))
    assert not turned.keys.is_contiguous()
    coded, same = codec.encode(turned), codec.encode(batch)
    assert all(torch.equal(coded.tensors[name], same.tensors[name]) for name in same.tensors)


def test_a_codec_is_made_from_the_spec_it_stores(codec: Codec) -> None:
    assert make_codec(codec.spec) == codec


@pytest.mark.parametrize(
    "spec", [{"name": "zip"}, {}, {"name": "raw", "speed": 9}, {"name": "int", "keys": 9}, {"name": ["raw"]}], ids=str
)
def test_an_unknown_codec_or_parameter_is_an_error_that_names_it(spec: dict[str, object]) -> None:
    with pytest.raises(CodecError, match=str(list(spec)[-1]) if spec else "name"):
        make_codec(spec)


def test_a_head_width_that_cannot_be_packed_is_refused_by_name() -> None:
    with pytest.raises(CodecError, match="head_dim 6"):
        code(random_prefix(head_dim=6), codec_of("int2"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_raw_is_bit_exact(dtype: torch.dtype) -> None:
    codec = codec_of("raw")
    for segment in random_prefix(dtype).segments:
        batch = batch_of([segment])
        back = restored(codec, codec.encode(batch).tensors, SegmentShape.of(batch), segment.position, segment.text)
        assert torch.equal(back.keys, segment.keys)
        assert torch.equal(back.values, segment.values)
