"""A Ray cluster of simulated nodes on this machine, with a dashboard, whose processes can be killed one by one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from tests.seaweed import S3Server

REPOSITORY = Path(__file__).parents[2]
SUBMIT_S = 120.0
TRAPS = Path(__file__).parent / "traps"
NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0}


class SmallCluster:
    """Two nodes with room for one replica each; the second can be lost and replaced."""

    def __init__(self) -> None:
        self.dashboard_port = _free_port()
        # The agent, which takes jobs, has one fixed port by default, that of any other head on this machine.
        dashboard = {
            "include_dashboard": True,
            "dashboard_port": self.dashboard_port,
            "dashboard_agent_listen_port": _free_port(),
        }
        self._cluster = Cluster(initialize_head=True, head_node_args={**NODE, **dashboard})
        self._second: Any = self._cluster.add_node(**NODE)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="error")

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must say to join."""
        return str(self._cluster.address)

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def replicas(self) -> dict[str, int]:
        """Node id -> process id of the replicas that are alive."""
        alive = list_actors(
            address=self.dashboard, filters=[("class_name", "=", "ReplicaActor"), ("state", "=", "ALIVE")]
        )
        return {actor.node_id: actor.pid for actor in alive}

    def kill_replica(self, on_second: bool) -> None:
        """SIGKILL the process of the replica on one of the nodes."""
        second = self._second.node_id
        os.kill(next(pid for node, pid in self.replicas().items() if (node == second) is on_second), signal.SIGKILL)

    def lose_second_node(self) -> None:
        """The node is gone at once, with all its processes."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def replace_second_node(self) -> None:
        """A new node in its place."""
        self._second = self._cluster.add_node(**NODE)

    def wait_until_idle(self) -> None:
        """Until no replica of an earlier job holds a CPU."""
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
            assert time.monotonic() < deadline, "replicas of an ended job are still alive"
            time.sleep(0.2)

    def submit(self, script: str, *options: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of one of the jobs; a cluster that has just started takes jobs only after some seconds."""
        command = [Path(sys.executable).with_name("ray"), "job", "submit", "--address", self.dashboard, "--"]
        command += [sys.executable, str(REPOSITORY / "jobs" / script), *options]
        deadline = time.monotonic() + SUBMIT_S
        while True:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * SUBMIT_S, cwd=REPOSITORY)
            if "No available agent" not in ended.stderr or time.monotonic() > deadline:
                return ended
            time.sleep(1)

    def shutdown(self) -> None:
        """End it."""
        ray.shutdown()
        self._cluster.shutdown()


@contextmanager
def small_cluster(server: S3Server, scratch: Path) -> Iterator[SmallCluster]:
    """A cluster whose processes reach the S3 server and know the traps."""
    environment = {
        **server.environment,
        "AWS_CONFIG_FILE": str(scratch / "no-aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(scratch / "no-aws-credentials"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(TRAPS)]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = SmallCluster()
        try:
            yield cluster
        finally:
            cluster.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
