"""Rows of an engine's pool as the place that restore writes to: what is restored is where decoding reads it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.target import RowTarget, TargetsInUse, fresh_targets
from trio_ray.model.decode.engine import Engine
from trio_ray.model.decode.pool import KVPool, PoolPrefix, PoolShape

Reserved = list[tuple[KVPool, PoolPrefix]]


class PoolTargets:
    """An `Allocate` that hands out rows of an engine's pool, a batch at each call.

    Rows that are short are waited for: the engine decodes meanwhile. Prefixes that the pool can never hold together get
    tensors of their own, and are copied into the pool one by one when their requests enter.

    Args:
        engine: decodes what is restored.
        own_rows: most rows that the questions and answers behind one prefix will take.
    """

    def __init__(self, engine: Engine, own_rows: int) -> None:
        self._engine, self._own_rows = engine, own_rows
        self._batches: deque[Reserved] = deque()

    def __call__(self, kinds: Sequence[Sequence[tuple[SegmentShape, ...]]]) -> Sequence[Sequence[RowTarget]]:
        """Targets for samples that are about to be restored (see `kv.target.Allocate`).

        Raises:
            TargetsInUse: there is no room for them before an earlier batch is released.
        """
        reserved: Reserved = []
        try:
            targets = [self._targets(samples, reserved) for samples in kinds]
        except BaseException:
            _release(reserved)
            raise
        self._batches.append(reserved)
        return targets

    def _targets(self, samples: Sequence[tuple[SegmentShape, ...]], reserved: Reserved) -> Sequence[RowTarget]:
        first = samples[0]
        shape = PoolShape(
            tuple(part.layers for part in first), first[0].kv_heads, first[0].head_dim, self._engine.dtype
        )
        rows = [[part.rows for part in sample] for sample in samples]
        unasked = sum(map(len, self._batches))
        held = self._engine.reserve(shape, rows, self._own_rows, unasked, wait=not self._batches)
        if held is None and self._batches:
            raise TargetsInUse("the decode memory has no room for another batch yet: release the one before")
        if held is None:
            return fresh_targets(self._engine.device)([samples])[0]
        pool = self._engine.pool
        reserved += [(pool, prefix) for prefix in held]
        return [
            RowTarget(pool.keys(run), pool.values(run), tuple(prefix.starts[run] for prefix in held))
            for run in range(pool.runs)
        ]

    def release(self) -> None:
        """Free what the earliest batch that has not been released yet holds, but for what a submitted request takes."""
        _release(self._batches.popleft())

    def close(self) -> None:
        """Release all batches."""
        while self._batches:
            self.release()


def _release(reserved: Reserved) -> None:
    for pool, prefix in reserved:
        pool.release(prefix)
