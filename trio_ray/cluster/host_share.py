"""How many of its node's CPUs a replica may count on."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from trio_ray.config import ActorConfig


def cpus_to_count_on(settings: ActorConfig) -> int:
    """Those that a replica reserves, or of its node's as large a share as it has of the GPUs, whichever is more.

    To be asked in the replica's own actor; elsewhere it is what a replica would reserve.
    """
    node: Mapping[str, float] = {}
    gpus = 0.0
    if ray.is_initialized():
        here = ray.get_runtime_context()
        gpus = float(here.get_assigned_resources().get("GPU", 0))
        node = next((n["Resources"] for n in ray.nodes() if n["NodeID"] == here.get_node_id()), {})
    return share_of(settings.cpus, gpus, node)


def share_of(reserved: float, gpus: float, node: Mapping[str, float]) -> int:
    """The same from the CPUs and GPUs that a replica has reserved, and all of the node's (`CPU`, `GPU`)."""
    beside = node.get("CPU", 0.0) * gpus / node["GPU"] if node.get("GPU") else 0.0
    return max(1, int(max(reserved, beside)))
