"""Our prefill with any selector as a contestant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from trio_ray.benchmark.contestant import Contestant
from trio_ray.config import CacheConfig
from trio_ray.method.schedule import Schedule
from trio_ray.method.selector import Selector
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica
from trio_ray.pipeline.model_stage import ModelStage, StoredGroup
from trio_ray.pipeline.packing import pack
from trio_ray.pipeline.token_budget import as_of_new_images


@dataclass(frozen=True)
class Pruned(Contestant):
    """Packed, pruned prefill as a job's replica runs it; keys and values stay on the device and are dropped.

    Attributes:
        replica: the model.
        samples: all of them.
        token_budget: prompt rows a batch.
        schedule: what is kept where.
        selector: which tokens stay.
    """

    replica: Replica
    samples: Sequence[PreparedSample]
    token_budget: int
    schedule: Schedule
    selector: Selector
    _open: list[StoredGroup | None] = field(default_factory=list)

    @cached_property
    def stage(self) -> ModelStage:
        """What a job's replica would run."""
        cache = CacheConfig(level="indices", top_k=1)
        return ModelStage(self.replica, self.schedule, self.selector, None, None, cache, self.token_budget)

    def batches(self, number: int) -> list[list[PreparedSample]]:
        """See `Contestant`."""
        return list(pack(as_of_new_images(self.samples, number), self.token_budget))

    def run(self, batch: Sequence[PreparedSample]) -> None:
        """See `Contestant`."""
        self._open.extend(self.stage.run(batch))

    def finish(self) -> None:
        """See `Contestant`: what had not settled is made again."""
        for group in self._open:
            if group is not None:
                group.arrived().release()
        self._open.clear()
