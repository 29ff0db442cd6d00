"""A weight matrix in the arithmetic it is applied in: the model's own, or 8 bit floats scaled by rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trio_ray.errors import ModelError

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


class Matrix(NamedTuple):
    """`weight` (out, in); `bias` (out,) or None; `scale` (out,) fp32 where the weight is e4m3, else None."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None

    @classmethod
    def of(cls, linear: nn.Linear) -> Matrix:
        """A layer's weight as it is; nothing is copied."""
        return cls(linear.weight, linear.bias, None)

    @classmethod
    def joined(cls, linears: Sequence[nn.Linear]) -> Matrix:
        """The weights of layers that read the same input as one matrix, one below the other.

        The layers' own weights become views of it, so that nothing is held twice and the layers compute as before.
        Where they are such views already, nothing is copied.
        """
        weight = _joined([linear.weight for linear in linears])
        biases = [linear.bias for linear in linears if linear.bias is not None]
        if not biases:
            return cls(weight, None, None)
        if len(biases) < len(linears):
            raise ModelError("some of the projections of a layer have a bias and some have none")
        return cls(weight, _joined(biases), None)

    def in_fp8(self) -> Matrix:
        """The same in 8 bit floats, each output's row with a scale of its own."""
        values, scale = row_scaled(self.weight)
        return Matrix(values, self.bias, scale)


@torch.no_grad()
def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parameters as one tensor along their first dimension, of which they become views."""
    first = parts[0]
    sizes, place = [len(part) for part in parts], first.storage_offset()
    for part in parts:
        shares = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not shares or part.storage_offset() != place or not part.is_contiguous():
            break
        place += part.numel()
    else:
        return first.detach().as_strided((sum(sizes), *first.shape[1:]), first.stride(), first.storage_offset())
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, whole.split(sizes), strict=True):
        part.data = view
    return whole


def row_scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) as e4m3 and the (n,) fp32 factors that its rows were divided by: each row's largest becomes 448."""
    wide = x.float()
    scale = wide.abs().amax(-1).clamp_min(1e-12) / FP8_MAX
    return (wide / scale[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def apply(x: Tensor, matrix: Matrix) -> Tensor:
    """(n, in) -> (n, out) in the dtype of `x`; for an e4m3 matrix the rows of `x` are scaled and rounded to it too."""
    weight, bias, scale = matrix
    if scale is None:
        return F.linear(x, weight, bias)
    values, factors = row_scaled(x)
    out = torch._scaled_mm(
        values, weight.t(), scale_a=factors[:, None], scale_b=scale[None], out_dtype=x.dtype, use_fast_accum=True
    )
    return out if bias is None else out + bias


def why_not_fp8(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why products of e4m3 matrices cannot run here, or None."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return "it needs a CUDA device of compute capability 8.9"
    return None if dtype == torch.bfloat16 else f"it needs bfloat16, not {dtype}"
