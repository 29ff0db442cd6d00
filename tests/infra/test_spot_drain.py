"""What a spot machine's end does to a job, with the `ray start` and the drain setting of the KubeRay manifests."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ActorDiedError

from tests.corpora import samples, write_tar
from tests.precompute.ray_cluster import REPOSITORY, TRAPS
from tests.precompute.runs import account, job_config
from trio_ray.cluster.events import ActorLost, ActorReady, PoolEvent
from trio_ray.cluster.hosts import was_preempted
from trio_ray.precompute.job import run_job
from trio_ray.precompute.plan import Task
from trio_ray.precompute.summary import JobSummary
from trio_ray.store.local import LocalStore

pytestmark = pytest.mark.slow

DRAIN_S = 5
DEADLINE_S = 90.0


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head without CPUs, as in the manifests; gives its address."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(TRAPS)]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield str(cluster.address)
    ray.shutdown()
    cluster.shutdown()


@contextmanager
def worker(address: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as KubeRay starts it: `ray start --block` is the container's main process."""
    program = Path(sysconfig.get_path("scripts")) / "ray"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program, "start", f"--address={address}", "--num-cpus=1", "--block"], stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


class Reclaim:
    """An observer that takes the machine back while its replica is at work, and brings another afterwards."""

    def __init__(self, machine: subprocess.Popen[bytes], bring_another: Callable[[], object]) -> None:
        self.machine, self.bring_another = machine, bring_another
        self.lost: list[str] = []

    def note(self, event: PoolEvent[Task], summary: JobSummary) -> None:
        """See `Observer`."""
        if isinstance(event, ActorLost):
            self.lost.append(event.why)
            self.bring_another()
        elif isinstance(event, ActorReady) and not self.lost:
            self.machine.send_signal(signal.SIGTERM)


def test_a_drained_machine_costs_its_shard_no_attempt(
    head: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    shard = write_tar(tmp_path / "0.waits.tar", samples(6))
    trap = shard.with_name(shard.name + ".armed")
    trap.touch()  # the replica stays in this shard until the machine is gone
    config = job_config(model_folders["llama"], shard, tmp_path / "cache", replicas__attempts=1)
    with ExitStack() as machines:

        def bring_another() -> None:
            trap.unlink()
            machines.enter_context(worker(head, tmp_path / "second.log"))

        first = machines.enter_context(worker(head, tmp_path / "first.log"))
        deadline = time.monotonic() + DEADLINE_S
        while ray.cluster_resources().get("CPU", 0) == 0:
            assert time.monotonic() < deadline, (tmp_path / "first.log").read_text()
            time.sleep(0.2)
        reclaim = Reclaim(first, bring_another)
        summary = run_job(config, observer=reclaim.note)
        drained = next(node["NodeID"] for node in ray.nodes() if not node["Alive"])
        # Ray gives a death without its cause when the cause comes late; the node's record tells it then.
        assert was_preempted(ActorDiedError(None), drained)
    assert len(reclaim.lost) == 1
    assert summary.ok, summary
    assert summary.stored == 6
    assert len(account(LocalStore(tmp_path / "cache")).stored) == 6
