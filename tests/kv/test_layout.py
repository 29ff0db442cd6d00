"""What a container holds of a prefix is known before it is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.kv.prefixes import CODECS, code, codec_of, contained, random_prefix
from trio_ray.kv.codecs.codec import by_stored_name
from trio_ray.kv.header import split_texts
from trio_ray.kv.layout import ROWS, StoredLayout
from trio_ray.kv.lossless.planes import TensorSpec


@pytest.mark.parametrize("name", CODECS)
def test_the_list_of_tensors_follows_from_the_shapes_and_the_ends(name: str) -> None:
    codec, prefix = codec_of(CODECS[name]), random_prefix()
    coded = code(prefix, codec)
    layout = codec.layout_of_all(coded.shapes)
    data = memoryview(contained(prefix, codec))
    texts = split_texts(data)
    tensors = by_stored_name(coded.segments)
    assert [*layout.names] == sorted(
        tensors, key=lambda own: (-tensors[own].itemsize * (codec.settings.zstd == 0), own)
    )
    assert layout.sizes.tolist() == [tensors[own].nbytes for own in layout.names]
    assert codec.layout_bytes(coded.shapes) == sum(tensor.nbytes for tensor in tensors.values())

    stored = json.loads(b"{" + texts.entries[1:])
    ends = [stored[own]["data_offsets"][1] for own in (*layout.names, ROWS)]
    rows = stored[ROWS]["shape"][0]
    assert layout.entries(rows, ends).encode() == texts.entries
    if not codec.has_lossless:
        assert layout.plain_ends(rows) == ends


def test_stretches_are_those_of_the_lossless_stage() -> None:
    specs = {
        "0.grid": TensorSpec(torch.int32, (3, 5)),
        "0.symbols": TensorSpec(torch.uint8, (12,), (7, 0, 5)),
        "1.states": TensorSpec(torch.bfloat16, (2, 4)),
        "2.none": TensorSpec(torch.uint8, (0, 6)),
    }
    planes = StoredLayout.of(specs, True)
    assert planes.names == ("0.grid", "0.symbols", "1.states", "2.none")
    assert planes.counts.tolist() == [4, 3, 2, 1]
    assert planes.stretches.tolist() == [15, 15, 15, 15, 7, 0, 5, 8, 8, 0]
    plain = StoredLayout.of(specs, False)
    assert plain.names == ("0.grid", "1.states", "0.symbols", "2.none"), "wide elements come first, so they are aligned"
    assert plain.counts.tolist() == [1] * 4
    assert plain.stretches.tolist() == plain.sizes.tolist() == [60, 16, 12, 0]
    assert np.array_equal(planes.sizes, [60, 12, 16, 0])
