"""Every codec: what it stores is what its layout promises, and comes back the same however often it is encoded."""

from __future__ import annotations

import pytest
import torch

from tests.kv.prefixes import random_prefix
from trio_ray.kv.codec import CODECS, Codec, Raw, SegmentShape, codec_named

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=list(CODECS.values()), ids=list(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stored_tensors_are_those_of_the_layout(codec: Codec, dtype: torch.dtype) -> None:
    for segment in random_prefix(dtype).segments:
        tensors = codec.encode(segment)
        layout = codec.layout(SegmentShape.of(segment))
        assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == layout
        assert all(tensor.is_contiguous() for tensor in tensors.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_segment_comes_back_in_its_own_shape_and_dtype(codec: Codec, dtype: torch.dtype) -> None:
    for segment in random_prefix(dtype).segments:
        back = codec.decode(codec.encode(segment), SegmentShape.of(segment))
        assert back.first_layer == segment.first_layer
        assert back.keys.shape == back.values.shape == segment.keys.shape
        assert back.keys.dtype == back.values.dtype == dtype


def test_encoding_is_deterministic(codec: Codec) -> None:
    once, again = (codec.encode(random_prefix().segments[0]) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_codec_is_found_by_the_name_it_stores(codec: Codec) -> None:
    assert codec_named(codec.name) is codec


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        codec_named("nonsense")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_raw_is_bit_exact(dtype: torch.dtype) -> None:
    for segment in random_prefix(dtype).segments:
        back = Raw().decode(Raw().encode(segment), SegmentShape.of(segment))
        assert torch.equal(back.keys, segment.keys)
        assert torch.equal(back.values, segment.values)
