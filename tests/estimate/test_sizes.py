"""What the lossless stage is reckoned to leave is near what it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trio_ray.estimate.made_up_states import GEOMETRIES, prefix_batch
from trio_ray.estimate.sizes import zstd_factor
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.registry import full_spec, make_codec
from trio_ray.kv.encode import code_batch
from trio_ray.kv.lossless.zstd import compress
from trio_ray.lab.codecs.made_up_bases import fit_transform
from trio_ray.lab.codecs.recipes import Fit

SMALL = replace(GEOMETRIES["bundled"], layers=10, kv_heads=2, least=120, most=120)


def measured(codec: Codec) -> float:
    """On a sample that was not planned with."""
    coded = code_batch(prefix_batch(SMALL, 1, torch.device("cpu"), seed=3), codec).split()[0]
    tensors = [tensor for segment in coded.segments for tensor in segment.values()]
    return sum(len(compress(tensor, 1)) for tensor in tensors) / codec.layout_bytes(coded.shapes)


@pytest.mark.parametrize("choice", ["raw", "int4", "int2"])
def test_codecs_that_need_no_basis_are_measured(choice: str) -> None:
    codec = make_codec(full_spec(choice))
    assert zstd_factor(codec, SMALL, torch.bfloat16) == pytest.approx(measured(codec), rel=0.1)


@pytest.mark.parametrize("ratio", [4, 6])
def test_packed_symbols_of_a_transform_shrink_by_about_half(ratio: float) -> None:
    ends = prefix_batch(SMALL, 2, torch.device("cpu"))
    codec, _ = fit_transform({"name": "transform", "zstd": 1}, Fit(ratio=ratio), SMALL, ends)
    assert zstd_factor(codec, SMALL, torch.bfloat16) == pytest.approx(measured(codec), rel=0.4)


def test_without_a_lossless_stage_nothing_shrinks() -> None:
    assert zstd_factor(make_codec(full_spec({"name": "int4", "zstd": 0})), SMALL, torch.bfloat16) == 1
