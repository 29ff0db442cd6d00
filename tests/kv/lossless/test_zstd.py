"""The lossless stage gives every tensor back, never grows one, and never asks a reader to believe too much."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trio_ray.kv.lossless.planes import TensorSpec
from trio_ray.kv.lossless.zstd import MAX_RATIO, SMALL, compress, decompress, is_compressed

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
    stored = compress(tensor, level)
    size = tensor.numel() * tensor.element_size()
    assert len(stored) == size or is_compressed(len(stored), size)
    back = decompress(stored.numpy(), TensorSpec(tensor.dtype, tuple(tensor.shape)))
    assert torch.equal(back.view(torch.uint8), tensor.contiguous().view(torch.uint8))


def test_noise_is_stored_as_it_is() -> None:
    assert torch.equal(compress(NOISE, 1), NOISE)


def test_what_shrinks_beyond_belief_is_stored_as_it_is() -> None:
    assert len(compress(TENSORS["zeros"], 1)) == 800_000
    assert len(compress(TENSORS["few zeros"], 1)) < 100
    assert not is_compressed(100, MAX_RATIO * 100 + SMALL)


@pytest.mark.parametrize("stored", [0, -8])
def test_a_frame_has_at_least_one_byte(stored: int) -> None:
    assert not is_compressed(stored, 100)


def test_exponents_shrink_although_mantissas_do_not() -> None:
    """Bytes of equal rank lie together, so that zstd sees those that are alike."""
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert len(compress(normal, 1)) < 0.75 * 200_000


@pytest.mark.parametrize("bad", [NOISE[:50], torch.zeros(50, dtype=torch.uint8)], ids=["noise", "zeros"])
def test_what_is_no_frame_is_an_error(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="zstd"):
        decompress(bad.numpy(), TensorSpec(torch.int32, (25, 1)))


def test_a_frame_of_another_size_is_an_error() -> None:
    stored = compress(TENSORS["normal"], 1)
    with pytest.raises(ValueError, match="zstd"):
        decompress(stored.numpy(), TensorSpec(torch.bfloat16, (30, 7, 12)))
