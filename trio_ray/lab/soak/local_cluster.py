"""A Ray cluster of several nodes on this machine, whose processes can be found and killed one by one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ray.cluster_utils import Cluster

REPLICA = "ray::ReplicaActor"
STORING = "trio_ray.precompute.storing_process"
NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 << 20}


class LocalCluster:
    """A head that runs no work, and nodes with room for one replica each, which can be lost and replaced."""

    def __init__(self, nodes: int) -> None:
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False}
        )
        self._nodes = [self._cluster.add_node(**NODE) for _ in range(nodes)]

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must say to join."""
        return str(self._cluster.address)

    def replicas(self) -> list[psutil.Process]:
        """Processes of replicas that are alive, on whichever node."""
        return _find(self._raylets(), REPLICA)

    def at_work(self) -> bool:
        """Whether a replica is at a shard. Ray names a process by what its actor does."""
        return bool(_find(self._raylets(), f"{REPLICA}.run"))

    def storing(self) -> list[psutil.Process]:
        """Processes that store what a replica sends."""
        return _find(self.replicas(), STORING)

    def lose_node(self, number: int) -> None:
        """The node is gone at once, with all its processes."""
        node = self._nodes.pop(number)
        works = _find([psutil.Process(_raylet(node))], "")
        self._cluster.remove_node(node, allow_graceful=False)
        for process in works:
            kill(process)

    def add_node(self) -> None:
        """A new node in the place of a lost one."""
        self._nodes.append(self._cluster.add_node(wait=False, **NODE))

    @property
    def nodes(self) -> int:
        """Nodes that can be lost."""
        return len(self._nodes)

    def shutdown(self) -> None:
        """End it."""
        self._cluster.shutdown()

    def _raylets(self) -> list[psutil.Process]:
        found = []
        for node in self._nodes:
            try:
                found.append(psutil.Process(_raylet(node)))
            except psutil.Error:
                continue
        return found


@contextmanager
def local_cluster(nodes: int) -> Iterator[LocalCluster]:
    """A cluster until the end."""
    cluster = LocalCluster(nodes)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> bool:
    """Send a signal; whether the process was there."""
    try:
        os.kill(process.pid, number)
    except OSError:
        return False
    return True


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _find(parents: list[psutil.Process], text: str) -> list[psutil.Process]:
    """The parents' children and theirs, whose command line has the text."""
    found = []
    for parent in parents:
        try:
            children = parent.children(recursive=True)
        except psutil.Error:
            continue
        for child in children:
            try:
                if text in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
            except psutil.Error:
                continue
    return found
