"""Stored prefixes restored between the steps of an engine that decodes behind them. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event

from trio_ray.cache.fetched import Row
from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.model.decode.engine import Answer, Engine
from trio_ray.model.decode.targets import PoolTargets

PASSES_UNDER_WAY = 2
"""Decode passes that a GPU may have left to do. So it has work while the host begins to restore a batch, which takes as
long as about three passes.
"""


@dataclass(frozen=True, slots=True)
class RestoredBatch:
    """Samples that were restored together, and the seconds in which there was nothing to do but to wait for them."""

    samples: Sequence[StoredPrefix | UnreadablePrefix]
    waited_s: float


class PrefixReader:
    """Fetches prefixes as soon as it is made, and restores them batch by batch between an engine's steps. Close it.

    On a GPU they are restored into the engine's memory; on a CPU in threads of the cache, and copied. Only
    `between_steps` and `close` use the engine.

    Args:
        cache: where they are.
        rows: of the prefixes.
        engine: decodes the requests that the caller submits.
        own_rows: most rows that the questions and answers behind one prefix will take.
        threads: requests to the store in flight.
    """

    def __init__(self, cache: PrunedCache, rows: Sequence[Row], engine: Engine, own_rows: int, threads: int) -> None:
        self._engine = engine
        self._targets = PoolTargets(engine, own_rows) if engine.device.type == "cuda" else None
        self._all_requested = Event()
        drawn = _then_set(rows, self._all_requested)
        self._batches = cache.restored(drawn, engine.device, threads=threads, allocate=self._targets)
        self._batches.begin()

    @property
    def all_requested(self) -> bool:
        """Whether the last prefix has been requested from the store, so that the store is free for other readers."""
        return self._all_requested.is_set()

    def between_steps(self) -> Iterator[RestoredBatch | list[Answer]]:
        """Decode as long as the next batch has yet to come. What is not submitted when the caller asks for more loses
        its memory.

        Yields:
            Batches in the order of the rows, and between them what `Engine.step` returns. Behind the last batch
            requests may still be under way.

        Raises:
            StoreError: the store failed in another way than for a lost or damaged object.
        """
        while True:
            has_come = self._batches.ready()  # which begins to restore what has been fetched
            if self._engine.waiting or (self._engine.busy and not has_come):
                yield self._engine.step(PASSES_UNDER_WAY)
                continue
            started = time.perf_counter()
            batch = next(self._batches, None)
            if batch is None:
                return
            yield RestoredBatch(batch, time.perf_counter() - started)
            if self._targets is not None:
                self._targets.release()

    def close(self) -> None:
        """Stop reading; what was restored and not submitted loses its memory."""
        if self._targets is not None:
            self._targets.close()
        self._batches.close()


def _then_set(rows: Iterable[Row], drawn: Event) -> Iterator[Row]:
    """The rows; the event is set when the last one has been drawn."""
    yield from rows
    drawn.set()
