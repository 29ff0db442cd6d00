"""How much memory a device has. Imports torch alone, so that a process that only asks starts quickly."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

CUDA_CONTEXT_BYTES = 1 << 30
"""What a process on a GPU holds beside its tensors, about."""


@dataclass(frozen=True)
class DeviceMemory:
    """A device's whole memory, in bytes. `overhead` is what a process holds there beside its tensors."""

    name: str
    bytes: int
    overhead: int = 0

    def shared_by(self, share: float) -> DeviceMemory:
        """What a replica may use that reserves this share of a device (`replicas.gpus`)."""
        if share >= 1:
            return self
        return DeviceMemory(f"a share of {share:g} of {self.name}", int(self.bytes * share), self.overhead)


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of a device of this machine; of the CPU what the process may use."""
    if device.type != "cuda":
        return DeviceMemory("this machine", host_memory())
    properties = torch.cuda.get_device_properties(device)
    return DeviceMemory(properties.name, properties.total_memory, CUDA_CONTEXT_BYTES)


def host_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits)
