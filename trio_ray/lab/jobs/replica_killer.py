"""Kills a replica of a running job, as a machine's failure would: its process, and no word to anybody."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trio_ray.lab.jobs.watch import JobWatch

KILL_AFTER_S = 20.0
"""After every one of the first replicas has committed a part: so long the rate before is measured."""

LOOK_EVERY_S = 0.5


@contextmanager
def one_replica_killed(watch: JobWatch, replicas: int) -> Iterator[list[float]]:
    """While a job runs that `watch` sees: kill one of its `replicas` replicas when it is due.

    Yields:
        When one was killed, on the watch's clock; stays empty where the job ends before.
    """
    killed: list[float] = []
    over = threading.Event()
    thread = threading.Thread(target=_kill_when_due, args=(watch, replicas, killed, over), daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _kill_when_due(watch: JobWatch, replicas: int, killed: list[float], over: threading.Event) -> None:
    while not over.wait(LOOK_EVERY_S):
        begun = watch.begun_s(replicas)
        working = _replica_processes() if begun is not None and watch.now() >= begun + KILL_AFTER_S else []
        if working:
            killed.append(watch.now())
            os.kill(working[0], signal.SIGKILL)
            return


def _replica_processes() -> list[int]:
    """Process numbers of the replica actors of this process's Ray, which names them after the method they are at."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(b"ray::ReplicaActor") and _is_ours(int(entry.name)):
                found.append(int(entry.name))
    return sorted(found)


def _is_ours(process: int) -> bool:
    """Whether it descends from this process; others on the machine may run jobs, too."""
    while process > 1:
        if process == os.getpid():
            return True
        process = int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return False
