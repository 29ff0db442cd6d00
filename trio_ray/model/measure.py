"""Time and memory of work on a device, which runs behind the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


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
