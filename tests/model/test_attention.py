"""Packed attention: what is refused, what SDPA computes, and (on a GPU) that the fused kernels agree with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trio_ray.errors import ConfigError
from trio_ray.method.rows import PackedRows
from trio_ray.model import attention
from trio_ray.model.attention import Backend, choose_backend, packed_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", ["flash_attn", "fa3", "varlen"])
def test_a_kernel_that_needs_a_gpu_is_refused_on_the_cpu(backend: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.attention: {backend}.*CUDA") as caught:
        choose_backend(backend, CPU, torch.bfloat16)
    assert caught.value.field == "model.attention"


@pytest.mark.parametrize("backend", ["flash_attn", "fa3", "varlen"])
def test_a_kernel_that_needs_half_precision_is_refused_in_fp32(backend: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.attention: {backend}.*bfloat16"):
        choose_backend(backend, torch.device("cuda", 0), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sdpa_runs_everywhere_and_is_what_auto_takes_on_the_cpu(dtype: torch.dtype) -> None:
    assert choose_backend("sdpa", CPU, dtype) == "sdpa"
    assert choose_backend("auto", CPU, dtype) == "sdpa"


def packed(lengths: list[int], heads: int, kv_heads: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    total = sum(lengths)
    shapes = ((total, heads, 64), (total, kv_heads, 64), (total, kv_heads, 64))
    return tuple(torch.randn(shape).to(device, dtype) for shape in shapes)


def layout(lengths: list[int], device: str) -> PackedRows:
    return PackedRows.pack([torch.zeros(length, dtype=torch.bool) for length in lengths], device)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_sdpa_is_causal_within_each_sample(kv_heads: int) -> None:
    """Against softmax written out, sample by sample; a later row or another sample has no say."""
    lengths = [5, 1, 17, 8]
    query, key, value = packed(lengths, 4, kv_heads, torch.float32, "cpu")
    rows = layout(lengths, "cpu")
    out = packed_attention("sdpa")(query, key, value, rows, 0.2)
    for start, stop in zip(rows.offsets, rows.offsets[1:], strict=False):
        for head in range(4):
            shared = head * kv_heads // 4
            scores = 0.2 * query[start:stop, head] @ key[start:stop, shared].T
            future = torch.ones_like(scores).triu(1).bool()
            truth = scores.masked_fill(future, float("-inf")).softmax(-1) @ value[start:stop, shared]
            torch.testing.assert_close(out[start:stop, head], truth, atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("backend", ["varlen", "fa3", "flash_attn"])
def test_fused_kernels_agree_with_sdpa(backend: Backend, kv_heads: int) -> None:
    try:
        choose_backend(backend, torch.device("cuda", 0), torch.bfloat16)
    except ConfigError as error:
        pytest.skip(str(error))
    lengths = [300, 1, 2940, 77, 128]
    query, key, value = packed(lengths, 8, kv_heads, torch.bfloat16, "cuda")
    rows = layout(lengths, "cuda")
    truth = packed_attention("sdpa")(query.float(), key.float(), value.float(), rows, 0.125)
    ours = packed_attention(backend)(query, key, value, rows, 0.125)
    assert ours.shape == query.shape
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), truth, atol=2e-2, rtol=2e-2)


def test_auto_takes_the_fastest_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: set[str] = set()
    monkeypatch.setattr(attention, "_why_not", lambda name, device, dtype: "missing" if name in missing else None)
    taken = []
    for _ in range(4):
        taken.append(choose_backend("auto", CPU, torch.bfloat16))
        missing.add(taken[-1])
    assert taken == ["fa3", "flash_attn", "varlen", "sdpa"]


@pytest.mark.gpu
def test_auto_takes_a_fused_kernel_on_a_gpu() -> None:
    assert choose_backend("auto", torch.device("cuda", 0), torch.bfloat16) != "sdpa"
    assert choose_backend("auto", torch.device("cuda", 0), torch.float32) == "sdpa"
