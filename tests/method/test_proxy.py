"""The proxy layer's pieces equal Hugging Face's modules and autograd."""

from __future__ import annotations

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from trio_ray.method.proxy import rms_norm, rms_norm_backward, rotate


def test_rms_norm_equals_hugging_face_in_fp32_and_bf16() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        norm = LlamaRMSNorm(32, eps=1e-5).to(dtype)
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
        hidden = 5 * torch.randn(7, 32, dtype=dtype)
        assert torch.equal(rms_norm(hidden, norm.weight, 1e-5), norm(hidden))


def test_rms_norm_backward_equals_autograd() -> None:
    hidden, weight, grad = torch.randn(9, 24, requires_grad=True), torch.randn(24), torch.randn(9, 24)
    (truth,) = torch.autograd.grad(rms_norm(hidden, weight, 1e-5), hidden, grad)
    torch.testing.assert_close(rms_norm_backward(grad, hidden.detach(), weight, 1e-5), truth)


def test_rotation_equals_hugging_face_and_its_reverse_is_the_gradient() -> None:
    angle = torch.randn(6, 8).repeat(1, 2)
    cos, sin = 1.1 * angle.cos(), 1.1 * angle.sin()  # scaled tables, as some rope types have
    x = torch.randn(6, 3, 16, requires_grad=True)
    truth, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos[None], sin[None])
    rotated = rotate(x, cos, sin)
    torch.testing.assert_close(rotated, truth[0].transpose(0, 1))
    grad = torch.randn_like(x)
    (through,) = torch.autograd.grad(rotated, x, grad)
    torch.testing.assert_close(rotate(grad, cos, -sin), through)
