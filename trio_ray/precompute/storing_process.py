"""The process behind `storing`: stores what a replica sends, and ends when the replica does."""

from __future__ import annotations

import os

from trio_ray.child_process import given_pipes, receive
from trio_ray.errors import TrioRayError
from trio_ray.precompute.shard_writer import PartReport, ShardSink, ShardWriter, StoringSpec
from trio_ray.precompute.storing_messages import Abort, Add, Answer, Begin, Finish, unpack_batch
from trio_ray.shared_block import SharedBlock
from trio_ray.store.opening import open_store


class StoringProcess:
    """What the process holds: the shard it is at, and the replica's blocks of memory."""

    def __init__(self, spec: StoringSpec) -> None:
        self._spec = spec
        self._store = open_store(spec.output, spec.s3)
        self._writer: ShardSink | None = None
        self._blocks: dict[int, SharedBlock] = {}

    def show(self, block: SharedBlock) -> None:
        """Take a block of the replica's memory."""
        self._blocks[block.number] = block

    def do(self, message: Begin | Add | Finish | Abort) -> list[PartReport]:
        """What a message asks for. Raises what `ShardWriter` raises."""
        if isinstance(message, Begin):
            self._writer = ShardWriter(self._spec, self._store, message.shard)
            return []
        assert self._writer is not None, "nothing is asked for before a shard begins"
        if isinstance(message, Add):
            for number in self._blocks.keys() - message.alive:
                self._blocks.pop(number).close()
            return self._writer.add(unpack_batch(message.batch, self._blocks))
        if isinstance(message, Finish):
            return self._writer.finish(message.highest_elsewhere)
        self._writer.abort()
        return []


NICENESS = 4
"""More than the replica has: where cores are short, the thread that feeds the GPU goes first. On two cores with storing
on both, a thread of its kind kept 86 % of its pace instead of 79, and storing lost 5 %."""


def main() -> None:
    """Serve the replica at the other end of the pipe, until it closes it."""
    os.nice(NICENESS)
    (pipe,) = given_pipes()
    process = StoringProcess(pipe.recv())
    while True:
        try:
            message = receive(pipe, SharedBlock)
        except (EOFError, OSError):
            os._exit(0)  # the replica is gone: what is not committed is nobody's, and no upload is worth waiting for
        if isinstance(message, SharedBlock):
            process.show(message)
            continue
        pipe.send(_answer(process, message))


def _answer(process: StoringProcess, message: Begin | Add | Finish | Abort) -> Answer:
    try:
        return Answer(process.do(message))
    except TrioRayError as error:
        return Answer([], error)
    except Exception as error:  # any other may be one that cannot be sent
        return Answer([], RuntimeError(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
