"""`pipeline.token_budget: auto`: the packing budget that suits a replica, found on the first samples that it gets."""

from __future__ import annotations

from itertools import islice

import torch

from trio_ray.config import JobConfig
from trio_ray.precompute.model_stage import ModelStage
from trio_ray.precompute.token_budget import find_budget
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import Opener, Shard

SAMPLES_TRIED = 24

MEMORY_SHARE = 0.7
"""Of the GPU's memory, what a trial may need: coded batches on their way to the host need some beside it."""


def suit_budget(stage: ModelStage, config: JobConfig, shard: Shard, opener: Opener) -> int:
    """Try budgets on a shard's first good samples, and let the stage work with the best one.

    Nothing is tried, and the budget stays, where the shard has no good sample or not even one fits into the memory.

    Returns:
        The budget that the stage has now, in prompt rows.

    Raises:
        StoreError: the shard could not be read.
    """
    preparer = stage.replica.preparer(
        config.source.max_pixels, config.cache.selected_under, schedule=stage.method.schedule
    )
    samples = list(islice(preparer.good(read_shard(shard, config.source, opener)), SAMPLES_TRIED))
    if samples:
        try:
            limit = _memory_limit(stage.replica.device)
            search = find_budget(stage.replica, samples, stage.method, memory_limit=limit)
            stage.token_budget = search.best.token_budget
        except torch.OutOfMemoryError:
            pass  # the stage halves its budget until a batch fits, and quarantines what does not fit alone
    return stage.token_budget


def _memory_limit(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return int(MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory)
