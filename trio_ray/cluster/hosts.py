"""Which hosts of the cluster seem to be broken."""

from __future__ import annotations

import time
from collections import Counter

import ray
from ray.exceptions import RayError

from trio_ray.cluster.session import gpus_per_replica
from trio_ray.config import ActorConfig

BROKEN_AFTER = 2
"""Failures on a host, with no success between them, after which new actors avoid it: one may be chance."""

HOPELESS_AFTER = 3
"""Failed starts on each host after which the cause must be the job's: the next start would fail as well."""

CAUSE_WAIT_S = 5.0
"""How long the cause of an actor's death is waited for, where Ray reports the death before it knows the cause."""

_ENDED_ON_PURPOSE = {1, 3, 4}
"""Of `NodeDeathInfo.Reason` in Ray's gcs.proto: EXPECTED_TERMINATION, AUTOSCALER_DRAIN_PREEMPTED and _IDLE."""


def was_preempted(error: RayError, node: str | None) -> bool:
    """Whether an actor died because its machine was shut down or taken back, which is not the doing of its work.

    Ray's own `preempted` is false where the machine ends at its deadline and not behind it, and Ray gives a death
    without its cause when it has not learned the cause within a second. The record of the node tells both.

    Args:
        error: with which a call of the actor ended.
        node: id of the node on which the actor ran; None if that is unknown.
    """
    if getattr(error, "preempted", False):
        return True
    if node is None:
        return False
    cause_is_known = getattr(error, "actor_id", "") is not None
    deadline = time.monotonic() + (0.0 if cause_is_known else CAUSE_WAIT_S)
    while True:
        record = next((one for one in ray.nodes() if one["NodeID"] == node), None)
        if record is None or not record["Alive"]:
            return record is not None and record.get("DeathReason") in _ENDED_ON_PURPOSE
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)


class HostRecord:
    """Failures of actors by host. Only hosts that are large enough for an actor count."""

    def __init__(self, settings: ActorConfig) -> None:
        self._settings = settings
        self._failures: Counter[str] = Counter()

    def failed(self, node: str | None, silent: bool = False) -> bool:
        """An actor could not start on this node, or all work failed on it. True if it had not failed before.

        One that was `silent` while it loaded has cost so much time that the node is avoided at once.
        """
        if node is None:
            return False
        is_first = self._failures[node] == 0
        self._failures[node] += BROKEN_AFTER if silent else 1
        return is_first

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

    def has_others(self, tried: set[str]) -> bool:
        """Whether there is a node that is not among these and does not seem to be broken."""
        return any(node not in tried and self._failures[node] < BROKEN_AFTER for node in self._nodes())

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
