"""The lossless stage gives every tensor back, never grows one, and never asks a reader to believe too much."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trio_ray.kv.lossless.zstd import MAX_RATIO, SMALL, expand, is_shrunk, shrink

NOISE = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "normal": torch.randn(30, 7, 11, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "grids": torch.randint(0, 9999, (9, 40), dtype=torch.int32),
    "view": torch.randn(40, 40).T[3:],
    "noise": NOISE,
    "zeros": torch.zeros(200_000, dtype=torch.int32),
    "few zeros": torch.zeros(SMALL // 4, dtype=torch.int32),
    "nothing": torch.zeros(0, 3, dtype=torch.int32),
}


@pytest.mark.parametrize("level", [1, 3, 19])
@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_tensor_comes_back_bit_for_bit_and_does_not_grow(tensor: Tensor, level: int) -> None:
    stored = shrink(tensor, level)
    size = tensor.numel() * tensor.element_size()
    assert len(stored) == size or is_shrunk(len(stored), size)
    back = expand(stored.numpy(), tensor.dtype, tuple(tensor.shape))
    assert torch.equal(back.view(torch.uint8), tensor.contiguous().view(torch.uint8))


def test_noise_is_stored_as_it_is() -> None:
    assert torch.equal(shrink(NOISE, 1), NOISE)


def test_what_shrinks_beyond_belief_is_stored_as_it_is() -> None:
    assert len(shrink(TENSORS["zeros"], 1)) == 800_000
    assert len(shrink(TENSORS["few zeros"], 1)) < 100
    assert not is_shrunk(100, MAX_RATIO * 100 + SMALL)


def test_exponents_shrink_although_mantissas_do_not() -> None:
    """Bytes of equal rank lie together, so that zstd sees those that are alike."""
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert len(shrink(normal, 1)) < 0.75 * 200_000


@pytest.mark.parametrize("bad", [NOISE[:50], torch.zeros(50, dtype=torch.uint8)], ids=["noise", "zeros"])
def test_what_is_no_frame_is_an_error(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="zstd"):
        expand(bad.numpy(), torch.int32, (25, 1))


def test_a_frame_of_another_size_is_an_error() -> None:
    stored = shrink(TENSORS["normal"], 1)
    with pytest.raises(ValueError, match="zstd"):
        expand(stored.numpy(), torch.bfloat16, (30, 7, 12))
