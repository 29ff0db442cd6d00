"""Our prefill with any selector as a contestant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from trio_ray.config import CacheConfig
from trio_ray.kv.codecs.codec import Codec
from trio_ray.lab.prefill.contestant import Contestant
from trio_ray.method.method import Method
from trio_ray.model.packing import pack
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.precompute.model_stage import ModelStage, StoredGroup
from trio_ray.precompute.shard_run import BATCHES_IN_FLIGHT
from trio_ray.precompute.token_budget import as_of_new_images

NOTHING_BUT_THE_ROW = CacheConfig(level="indices", top_k=1)


@dataclass(frozen=True)
class Pruned(Contestant):
    """Packed, pruned prefill as a job's replica runs it, and what is stored of it, on its way to the host. By default
    keys and values stay on the device and are dropped; what reaches the host is dropped there.

    Attributes:
        replica: the model.
        samples: all of them.
        token_budget: prompt rows a batch.
        method: which tokens stay.
        codec: of keys and values, if they are stored.
        cache: what is stored.
    """

    replica: Replica
    samples: Sequence[PreparedSample]
    token_budget: int
    method: Method
    codec: Codec | None = None
    cache: CacheConfig = NOTHING_BUT_THE_ROW
    _open: list[StoredGroup] = field(default_factory=list)

    @cached_property
    def stage(self) -> ModelStage:
        """What a job's replica would run."""
        return ModelStage(self.replica, self.method, self.codec, self.cache, self.token_budget)

    def batches(self, number: int) -> list[list[PreparedSample]]:
        """See `Contestant`."""
        return list(pack(as_of_new_images(self.samples, number), self.token_budget))

    def run(self, batch: Sequence[PreparedSample]) -> None:
        """See `Contestant`."""
        self._open.extend(group for group in self.stage.run(batch) if isinstance(group, StoredGroup))
        self._drop(but=BATCHES_IN_FLIGHT)

    def finish(self) -> None:
        """See `Contestant`."""
        self._drop(but=0)

    def _drop(self, but: int) -> None:
        """Wait for all but the last few, as a job does; what had not converged is recomputed."""
        while len(self._open) > but:
            for arrived in self._open.pop(0).arrived():
                if isinstance(arrived, StoredGroup):
                    arrived.release()
