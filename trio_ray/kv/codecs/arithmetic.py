"""Where the arithmetic of the quantising codecs runs: Triton on a GPU, torch elsewhere. The bytes are the same."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from trio_ray.kv.codecs import quantise
from trio_ray.kv.codecs.quantise import RowGroups
from trio_ray.tensors import has_triton


class Arithmetic(Protocol):
    """What `quantise` and `triton_kernels` both offer; see `quantise`."""

    def compress_channels(self, source: Tensor, groups: RowGroups, bits: int) -> tuple[Tensor, Tensor]: ...

    def decompress_channels(self, codes: Tensor, grids: Tensor, groups: RowGroups, bits: int, out: Tensor) -> None: ...

    def compress_vectors(self, source: Tensor, rows: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]: ...

    def decompress_vectors(
        self, codes: Tensor, grids: Tensor, rows: Tensor, group: int, bits: int, out: Tensor
    ) -> None: ...


def arithmetic(device: torch.device) -> Arithmetic:
    """The implementation for tensors on `device`."""
    if has_triton(device):
        from trio_ray.kv.kernels import quantise as triton_kernels

        return triton_kernels
    return quantise
