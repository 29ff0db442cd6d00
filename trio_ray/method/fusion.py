"""Tensor code for a GPU: memory-bound code as fused kernels, and numbers that get there without a wait."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def fused(**dynamic: tuple[int, ...]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of tensors so that `torch.compile` fuses it where its tensors are on a GPU.

    On a CPU, inside another compiled function and while gradients are recorded it runs as it is written. Arguments
    must be passed by position.

    Args:
        dynamic: by argument name the dimensions that differ from batch to batch: they are compiled once for all sizes,
            so that a new batch never compiles anything. The other dimensions belong to the model.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)
        marked = [(names.index(name), dims) for name, dims in dynamic.items()]
        compiled: list[Callable[P, R]] = []

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            on_gpu = isinstance(args[0], Tensor) and args[0].is_cuda
            if not on_gpu or torch.compiler.is_compiling() or torch.is_grad_enabled():
                return function(*args, **kwargs)
            if not compiled:
                compiled.append(torch.compile(function))
            for place, dims in marked:
                tensor = args[place]
                if isinstance(tensor, Tensor):
                    for dim in dims:
                        torch._dynamo.maybe_mark_dynamic(tensor, dim)
            return compiled[0](*args, **kwargs)

        return run

    return decorate


def has_triton(device: torch.device) -> bool:
    """Whether our own kernels can work there: it is a GPU, and Triton is installed, which comes with torch."""
    return device.type == "cuda" and find_spec("triton") is not None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor from the host, without waiting for what the device is doing: only pinned memory is copied so."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def on_device(
    values: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Numbers that the host knows as a tensor on the device; see `to_device`."""
    return to_device(torch.tensor(values, dtype=dtype), device)
