"""An actor for the tests of the pool: a piece of work names what shall happen to it. Real processes do it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from trio_ray.cluster.actors import PooledActor, WantsMore
from trio_ray.errors import StoreError
from trio_ray.model.hub import _display


@dataclass(frozen=True)
class Job:
    """A piece of work. `once` makes the same work sound after it has failed one time.

    `act` is one of: fine, kill, freeze, sick (from now on all work fails), refuse (a `StoreError`), overlap (asks for
    more work before it is done), slow.
    """

    name: str
    act: str = "fine"
    once: bool = True


class TestActor(PooledActor[Job]):
    """Does what jobs say. `broken_nodes` are hosts on which it cannot load; on `hanging_nodes` loading never ends. A
    download takes `download_s` seconds before.
    """

    __test__ = False

    def __init__(
        self,
        folder: Path,
        broken_nodes: tuple[str, ...] = (),
        hanging_nodes: tuple[str, ...] = (),
        download_s: int = 0,
    ) -> None:
        self._folder = folder
        self._broken = broken_nodes
        self._hanging = hanging_nodes
        self._download_s = download_s
        self._sick = False

    def load(self) -> str:
        """See `PooledActor`."""
        node = ray.get_runtime_context().get_node_id()
        if self._download_s:
            display = _display.get()  # what `download_model` tells
            assert display is not None
            display.begin("owner/model (2 files)", 1000 * self._download_s)
            for second in range(self._download_s):
                time.sleep(1.01)
                display.show(1000 * (second + 1))
            display.end()
        if node in self._hanging:
            time.sleep(0.5)  # until the pool knows where the process is
            os.kill(os.getpid(), signal.SIGSTOP)
        if node in self._broken:
            raise OSError("the driver of this host is broken")
        return node

    def run(self, work: Job) -> Iterator[str | WantsMore]:
        """Yields the name of the work, with its process id."""
        seen = self._folder / work.name
        act = "fine" if work.once and seen.exists() else work.act
        seen.touch()
        self._sick |= act == "sick"
        if self._sick:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if act == "refuse":
            raise StoreError("s3://bucket", "SlowDown")
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if act == "overlap":
            yield WantsMore()
        if act in ("overlap", "slow"):
            time.sleep(1.5)
        yield f"{work.name} {os.getpid()}"
