"""The messages between a replica and its storing processes. Both are this program, on one machine."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trio_ray.precompute.host_batch import HostBatch
from trio_ray.precompute.host_memory import ShmReference
from trio_ray.precompute.shard_writer import PartReport
from trio_ray.shared_block import SharedBlock
from trio_ray.source.sample import Shard


@dataclass(frozen=True)
class Begin:
    """A shard begins."""

    shard: Shard


@dataclass(frozen=True)
class Add:
    """A packed batch. Of the blocks that were shown, those that are not `alive` can be closed."""

    batch: bytes
    alive: frozenset[int]


@dataclass(frozen=True)
class Finish:
    """The shard ends; see `ShardSink.finish`."""

    highest_elsewhere: int


@dataclass(frozen=True)
class Abort:
    """The shard is given up."""


@dataclass(frozen=True)
class Answer:
    """To every message: what is done, or what went wrong."""

    reports: list[PartReport]
    error: Exception | None = None


def pack_batch(batch: HostBatch) -> bytes:
    """A batch as bytes. Its tensors stay in shared memory, and references stand for them.

    Raises:
        ValueError: a tensor lies in none of them.
    """
    sink = io.BytesIO()
    _Packer(sink, [group.block for group in batch.groups if group.block is not None]).dump(batch)
    return sink.getvalue()


def unpack_batch(data: bytes, blocks: Mapping[int, SharedBlock]) -> HostBatch:
    """Undo `pack_batch` where these blocks are mapped; the groups' own blocks are left out."""
    batch: HostBatch = _Unpacker(io.BytesIO(data), blocks).load()
    return batch


class _Packer(pickle.Pickler):
    def __init__(self, sink: io.BytesIO, blocks: list[SharedBlock]) -> None:
        super().__init__(sink, pickle.HIGHEST_PROTOCOL)
        self._blocks = blocks

    def persistent_id(self, thing: Any) -> ShmReference | tuple[()] | None:
        if isinstance(thing, SharedBlock):
            return ()
        return ShmReference.of(thing, self._blocks) if isinstance(thing, Tensor) else None


class _Unpacker(pickle.Unpickler):
    def __init__(self, source: io.BytesIO, blocks: Mapping[int, SharedBlock]) -> None:
        super().__init__(source)
        self._blocks = blocks

    def persistent_load(self, reference: ShmReference | tuple[()]) -> Tensor | None:
        return reference.tensor(self._blocks[reference.block]) if isinstance(reference, ShmReference) else None
