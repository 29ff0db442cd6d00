"""Kills what a job runs in, one thing after the other, whichever was least often hit."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil

from trio_ray.lab.soak.local_cluster import LocalCluster, kill
from trio_ray.lab.soak.small_disk import SmallDisk

NODE_AWAY_S = 2.0
MOST_AHEAD = 4
DISK_FULL_S = 4.0
STOPPED_GRACE_S = 60.0


@dataclass
class Saboteur:
    """What it does, and what it has done.

    Attributes:
        cluster: the job's.
        disk: the file system of outputs that are a folder.
        acts: which it does, of `settings.ACTS`.
        silence_limit_s: of the job: a stopped replica must be gone soon after.
        seed: of the order of acts that were equally often done.
        done: number of acts, by kind.
        survived: stopped replicas that the job did not end in time.
    """

    cluster: LocalCluster
    disk: SmallDisk
    acts: tuple[str, ...]
    silence_limit_s: float
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    survived: int = 0
    _stopped: tuple[psutil.Process, float] | None = None
    _node_back_at: float | None = None
    _room_at: float | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def act(self, driver: subprocess.Popen[bytes], output_is_local: bool) -> str | None:
        """Do the possible act that was least often done; None where nothing is at work that could be hit.

        No act gets far ahead of the others: they would find nothing at work any more.
        """
        if not self.cluster.at_work():
            return None
        order = sorted(self.acts, key=lambda name: (self.done[name], self._random.random()))
        most = MOST_AHEAD + min(self.done[name] for name in self.acts if output_is_local or name != "disk_full")
        for name in order:
            if self.done[name] >= most:
                break
            if self._try(name, driver, output_is_local):
                self.done[name] += 1
                return name
        return None

    def least(self) -> int:
        """How often the rarest act was done."""
        return min((self.done[name] for name in self.acts), default=0)

    def tick(self) -> None:
        """Bring back what was taken away, when its time has come."""
        now = time.monotonic()
        if self._node_back_at is not None and now >= self._node_back_at:
            self._node_back_at = None
            self.cluster.add_node()
        if self._room_at is not None and now >= self._room_at:
            self._room_at = None
            self.disk.free()
        if self._stopped is not None:
            process, since = self._stopped
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                self._stopped = None
            elif now - since > self.silence_limit_s + STOPPED_GRACE_S:
                self.survived += 1
                kill(process)
                self._stopped = None

    def settle(self) -> None:
        """Bring everything back at once; what is stopped is waited for by `tick`."""
        self._node_back_at = None if self._node_back_at is None else 0.0
        self._room_at = None if self._room_at is None else 0.0
        self.tick()

    def _try(self, name: str, driver: subprocess.Popen[bytes], output_is_local: bool) -> bool:
        if name == "driver":
            # The job that has to end the stopped replica is this driver's.
            return self._stopped is None and kill(psutil.Process(driver.pid))
        if name == "replica":
            return self._kill_one([process for process in self.cluster.replicas() if not self._is_stopped(process)])
        if name == "writer":
            return self._kill_one(self.cluster.storing())
        if name == "node":
            return self._lose_node()
        if name == "stopped":
            return self._stop_replica()
        if not output_is_local or self._room_at is not None:
            return False
        self.disk.fill()
        self._room_at = time.monotonic() + DISK_FULL_S
        return True

    def _kill_one(self, processes: list[psutil.Process]) -> bool:
        return bool(processes) and kill(self._random.choice(processes))

    def _lose_node(self) -> bool:
        if self._node_back_at is not None or self._stopped is not None:
            return False
        self.cluster.lose_node(self._random.randrange(self.cluster.nodes))
        self._node_back_at = time.monotonic() + NODE_AWAY_S
        return True

    def _stop_replica(self) -> bool:
        replicas = self.cluster.replicas()
        if self._stopped is not None or not replicas:
            return False
        process = self._random.choice(replicas)
        if not kill(process, signal.SIGSTOP):
            return False
        self._stopped = process, time.monotonic()
        return True

    def _is_stopped(self, process: psutil.Process) -> bool:
        return self._stopped is not None and process.pid == self._stopped[0].pid
