"""Tensors on devices: fused code for a GPU, transfers that nothing waits for, and time and memory of work."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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


@functools.cache
def side_stream(device: torch.device, use: str) -> torch.cuda.Stream:
    """A stream of a GPU for one use beside the current stream; the same one at every call."""
    return torch.cuda.Stream(device)


def to_host(tensor: Tensor) -> Tensor:
    """A tensor in host memory, once the device's current stream has come to it: nothing waits."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def on_device(
    values: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Numbers that the host knows as a tensor on the device; see `to_device`."""
    return to_device(torch.tensor(values, dtype=dtype), device)


ALIGNMENT = 256
"""Bytes; where each tensor begins, so that a kernel reads it as it reads one of its own. Triton compiles a kernel anew,
for up to a second, when a tensor comes that does not begin at a multiple of 16 bytes.
"""


def move_joined(runs: Sequence[Sequence[Tensor]], device: torch.device) -> list[Tensor]:
    """Each run of host tensors as one, joined along the first dimension, on the device.

    To a GPU they go through one block of pinned memory in a single copy, which nothing waits for. The tensors of a run
    have one dtype, and equal sizes but for the first.
    """
    if device.type == "cpu":
        return [run[0] if len(run) == 1 else torch.cat(list(run)) for run in runs]
    sizes = [sum(tensor.numel() * tensor.element_size() for tensor in run) for run in runs]
    starts = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    block = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    room = block.numpy()
    for run, start, size in zip(runs, starts, sizes, strict=False):
        # Not by torch, which has several threads at it, that go on to keep cores busy for a while.
        octets = [tensor.reshape(-1).view(torch.uint8).numpy() for tensor in run]
        np.concatenate(octets, out=room[start : start + size])
    moved = block.to(device, non_blocking=True)
    return [
        moved[start : start + size].view(run[0].dtype).view(sum(map(len, run)), *run[0].shape[1:])
        for run, start, size in zip(runs, starts, sizes, strict=False)
    ]


def move_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Host tensors on the device, see `move_joined`."""
    return move_joined([[tensor] for tensor in tensors], device)


@dataclass(frozen=True)
class Measured:
    """`seconds` until the device was done; `peak_bytes` most memory held meanwhile, None where torch does not know."""

    seconds: float
    peak_bytes: int | None


def measure(device: torch.device, work: Callable[[], object]) -> Measured:
    """Do `work` and wait for the device, which is idle when the clock starts. What `work` raises passes through."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return Measured(seconds, torch.cuda.max_memory_allocated(device) if on_gpu else None)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads on the CPU until the end; by default it takes every core."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Mark = float | torch.cuda.Event
"""A moment: seconds on the host's clock, or an event that the device passes without being waited for."""


def mark(device: torch.device) -> Mark:
    """This moment: on a GPU, when its current stream comes to what was given to it by now."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def milliseconds_between(start: Mark, stop: Mark) -> float:
    """From one mark of a device to a later one; waits until a GPU has passed both."""
    if isinstance(start, torch.cuda.Event) and isinstance(stop, torch.cuda.Event):
        stop.synchronize()
        return start.elapsed_time(stop)
    assert isinstance(start, float)
    assert isinstance(stop, float)
    return 1e3 * (stop - start)


def attempt(device: torch.device, work: Callable[[], R]) -> R | None:
    """What `work` returns; None where the device's memory is too small for it, which is free again then."""
    with suppress(torch.OutOfMemoryError):
        return work()
    # Outside of the handler, whose traceback would keep the tensors of `work` alive.
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # copies under way hold memory, too
        torch.cuda.empty_cache()
    return None


def in_fitting_parts(
    device: torch.device,
    items: Sequence[T],
    work: Callable[[Sequence[T]], R],
    on_halved: Callable[[], None] = lambda: None,
) -> list[tuple[Sequence[T], R | None]]:
    """Do `work` on all items at once, or on halves of them as often as the device's memory is too small.

    Args:
        device: whose memory is meant.
        items: at least one.
        work: given some of the items, in order.
        on_halved: called whenever items are halved.

    Returns:
        The items of each part and what `work` returned for it, in order; None for an item that does not fit alone.
    """
    done = attempt(device, lambda: work(items))
    if done is not None:
        return [(items, done)]
    if len(items) == 1:
        return [(items, attempt(device, lambda: work(items)))]  # once more: the memory is free now
    on_halved()
    half = len(items) // 2
    return [
        *in_fitting_parts(device, items[:half], work, on_halved),
        *in_fitting_parts(device, items[half:], work, on_halved),
    ]
