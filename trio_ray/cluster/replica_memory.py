"""How much memory a replica will find on the cluster, asked before anything is made or loaded."""

from __future__ import annotations

import socket
from dataclasses import replace

import ray
import torch
from ray.exceptions import RayError

from trio_ray.config import ActorConfig
from trio_ray.model.device_memory import DeviceMemory, device_memory

TIMEOUT_S = 60.0


def replica_memory(settings: ActorConfig, gpus: float, timeout_s: float = TIMEOUT_S) -> DeviceMemory | None:
    """The memory of the device of one node that has room for a replica; Ray must be connected.

    Args:
        settings: what a replica reserves.
        gpus: that it reserves; without any its device is the node's CPU.
        timeout_s: longest wait for such a node.

    Returns:
        None where no node had room in time, or the one that was asked was lost: nothing is known then.
    """
    task = ray.remote(max_calls=1)(_memory_here).options(num_cpus=settings.cpus, num_gpus=gpus, max_retries=0)
    answer = task.remote(gpus > 0)
    ready, _ = ray.wait([answer], timeout=timeout_s)
    try:
        if not ready:
            ray.cancel(answer)
            return None
        memory: DeviceMemory = ray.get(answer)
    except RayError:
        return None
    return memory


def _memory_here(on_gpu: bool) -> DeviceMemory:
    memory, node = device_memory(torch.device("cuda" if on_gpu else "cpu")), f"the node {socket.gethostname()}"
    return replace(memory, name=f"{memory.name} of {node}" if on_gpu else node)
