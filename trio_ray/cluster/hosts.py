"""Which hosts of the cluster seem to be broken."""

from __future__ import annotations

from collections import Counter

import ray

from trio_ray.cluster.session import gpus_per_replica
from trio_ray.config import ActorConfig

BROKEN_AFTER = 2
"""Failures on a host, with no success between them, after which new actors avoid it: one may be chance."""

HOPELESS_AFTER = 3
"""Failed starts on each host after which the cause must be the job's: the next start would fail as well."""


class HostRecord:
    """Failures of actors by host. Only hosts that are large enough for an actor count."""

    def __init__(self, settings: ActorConfig) -> None:
        self._settings = settings
        self._failures: Counter[str] = Counter()

    def failed(self, node: str | None) -> None:
        """An actor could not start on this node, or all work failed on it."""
        if node is not None:
            self._failures[node] += 1

    def worked(self, node: str | None) -> None:
        """An actor did work on this node."""
        self._failures.pop(node or "", None)

    def avoided(self) -> set[str]:
        """The broken nodes that are still there; none if no other node has been left."""
        if not any(count >= BROKEN_AFTER for count in self._failures.values()):
            return set()
        nodes = self._nodes()
        broken = {node for node in nodes if self._failures[node] >= BROKEN_AFTER}
        return broken if len(broken) < len(nodes) else set()

    def hopeless(self) -> bool:
        """Whether every node has failed `HOPELESS_AFTER` times."""
        nodes = self._nodes()
        return bool(nodes) and all(self._failures[node] >= HOPELESS_AFTER for node in nodes)

    def _nodes(self) -> list[str]:
        """Ids of the nodes that are alive and have the resources of an actor in all."""
        cpus, gpus = self._settings.cpus, gpus_per_replica(self._settings.gpus)
        return [
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("GPU", 0) >= gpus
        ]
