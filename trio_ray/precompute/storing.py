"""Storing in processes of their own, so that nothing in the one that drives a GPU gets into its way.

Compressing, hashing and sending gigabytes a second in threads beside the loop that starts the GPU's kernels cost that
loop half of its rate, though most of the work is done without Python's lock. So a replica on a GPU hands its batches
over: the numbers in shared memory (`host_memory`), where the GPU has put them, all else through a pipe.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from trio_ray.child_process import ChildProcess
from trio_ray.errors import StoreError
from trio_ray.precompute.host_batch import HostBatch
from trio_ray.precompute.host_memory import HostMemory
from trio_ray.precompute.shard_writer import PartReport, ShardSink, StoringSpec
from trio_ray.precompute.storing_messages import Abort, Add, Answer, Begin, Finish, pack_batch
from trio_ray.shared_block import SharedBlock
from trio_ray.source.sample import Shard

log = logging.getLogger(__name__)

MODULE = "trio_ray.precompute.storing_process"


class StoringProcessLost(StoreError):
    """The process that stored a shard is gone; what it had not committed is lost, the shard to be tried again."""


class StoringProcesses:
    """The storing processes of a replica: as many as it has shards on their way. Thread-safe.

    Args:
        spec: what is stored where.
        memory: that all batches lie in.
        at_once: shards that are stored at the same time, as far as is known.
    """

    def __init__(self, spec: StoringSpec, memory: HostMemory, at_once: int) -> None:
        self._spec = spec
        self._memory = memory
        self._idle = [_Process(spec) for _ in range(at_once)]  # they start while the model is being loaded
        self._lock = threading.Lock()

    def open(self, shard: Shard) -> ShardSink:
        """Where a shard's batches go; the groups of each must say which block of the memory they lie in.

        Raises:
            StoreError: no process could be started.
        """
        with self._lock:
            process = self._idle.pop() if self._idle else None
        process = process or _Process(self._spec)
        process.ask(Begin(shard))
        return _RemoteWriter(process, self._memory, self._idle.append)

    def close(self) -> None:
        """End the processes, which have nothing to do any more. When the replica's own process ends, so do they."""
        with self._lock:
            while self._idle:
                self._idle.pop().end()


class _RemoteWriter:
    """A `ShardSink` whose work another process does."""

    def __init__(self, process: _Process, memory: HostMemory, give_back: Callable[[_Process], None]) -> None:
        self._process: _Process | None = process
        self._memory = memory
        self._give_back = give_back

    def add(self, batch: HostBatch) -> list[PartReport]:
        if self._process is None:
            return []
        for group in batch.groups:
            if group.block is not None:
                self._process.show(group.block)
        return self._ask(Add(pack_batch(batch), self._memory.alive))

    def finish(self, highest_elsewhere: int) -> list[PartReport]:
        reports = self._ask(Finish(highest_elsewhere))
        self._let_go()
        return reports

    def abort(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.ask(Abort())
        except Exception as error:  # nobody knows what it is at: the next shard gets another process
            log.warning("the process that stored a shard is ended, because it did not give the shard up: %s", error)
            process.end()
        else:
            self._give_back(process)

    def _ask(self, message: Add | Finish) -> list[PartReport]:
        if self._process is None:
            return []
        try:
            return self._process.ask(message)
        except StoringProcessLost:
            self._process = None
            raise

    def _let_go(self) -> None:
        if self._process is not None:
            self._give_back(self._process)
            self._process = None


class _Process:
    """One process, and this end of the pipe. For one thread at a time."""

    def __init__(self, spec: StoringSpec) -> None:
        self._uri = spec.output
        # Its numerical libraries get no threads of their own.
        self._child = ChildProcess(MODULE, environment={"OMP_NUM_THREADS": "1"})
        (self._pipe,) = self._child.pipes
        self._tell(spec)

    def ask(self, message: Begin | Add | Finish | Abort) -> list[PartReport]:
        """Have something done. Raises what was raised there, or `StoringProcessLost`."""
        self._tell(message)
        try:
            answer: Answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if answer.error is not None:
            raise answer.error
        return answer.reports

    def show(self, block: SharedBlock) -> None:
        """Make sure that a block is known there. Raises `StoringProcessLost`."""
        try:
            self._child.show(self._pipe, block)
        except OSError:
            raise self._lost() from None

    def end(self) -> None:
        """Wait for its end."""
        self._child.end()

    def _tell(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            raise self._lost() from None

    def _lost(self) -> StoringProcessLost:
        self.end()
        return StoringProcessLost(
            self._uri,
            f"the process that stored a shard ended with {self._child.returncode} (-9: killed, often for memory); "
            "what it had not committed is made again",
        )
