"""Rows of an engine's pool as the place that restore writes to: what is restored is where decoding reads it."""

from __future__ import annotations

from collections.abc import Sequence

from trio_ray.kv.batch import SegmentShape
from trio_ray.kv.target import RowTarget, fresh_targets
from trio_ray.model.decode.engine import Engine
from trio_ray.model.decode.pool import KVPool, PoolPrefix, PoolShape


class PoolTargets:
    """An `Allocate` that hands out rows of an engine's pool.

    Rows that are short are waited for: the engine decodes meanwhile. Prefixes that the pool can never hold together get
    tensors of their own, and are copied into the pool one by one when their requests enter.

    Args:
        engine: decodes what is restored.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reserved: list[tuple[KVPool, PoolPrefix]] = []

    def __call__(self, samples: Sequence[tuple[SegmentShape, ...]]) -> Sequence[RowTarget]:
        """Targets for samples that are about to be restored (see `kv.target.Allocate`)."""
        if not samples:
            return []
        first = samples[0]
        shape = PoolShape(
            tuple(part.layers for part in first), first[0].kv_heads, first[0].head_dim, self._engine.dtype
        )
        held = self._engine.reserve(shape, [[part.rows for part in sample] for sample in samples])
        if held is None:
            return fresh_targets(self._engine.device)(samples)
        pool = self._engine.pool
        self._reserved += [(pool, prefix) for prefix in held]
        return [
            RowTarget.at(
                pool.keys(run),
                pool.values(run),
                [prefix.starts[run] for prefix in held],
                [prefix.rows[run] for prefix in held],
            )
            for run in range(pool.runs)
        ]

    def release(self) -> None:
        """Free what was handed out so far and is in no request that was submitted."""
        for pool, prefix in self._reserved:
            pool.release(prefix)
        self._reserved.clear()
