"""The cache identity: everything that decides what a stored prefix is, by name."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trio_ray.config import JobConfig
from trio_ray.kv.container import CONTAINER_VERSION
from trio_ray.method.schedule import Schedule
from trio_ray.model.loading import model_fingerprint
from trio_ray.model.replica import make_selector, make_zipper


def build_identity(config: JobConfig, folder: Path, dtype: torch.dtype, schedule: Schedule) -> dict[str, Any]:
    """The identity of the cache that a job writes.

    It holds contents, not names: a model that moves to another folder keeps it. How the work is spread, and the
    attention kernel, are no part of it.

    Args:
        config: the job.
        folder: the model's folder.
        dtype: the replicas' arithmetic, which is also the type of raw keys and values.
        schedule: the solved budget.
    """
    zipper = make_zipper(config.method)
    return {
        "container_version": CONTAINER_VERSION,
        "model": {**model_fingerprint(folder), "dtype": str(dtype).removeprefix("torch.")},
        "prompt": config.prompt.model_dump(mode="json"),
        "method": {
            "selector": config.method.selector,
            "selector_settings": asdict(make_selector(config.method)),
            "encoder": config.method.encoder,
            "encoder_settings": None if zipper is None else asdict(zipper),
            "layers": schedule.layers,
            "prune_points": list(schedule.prune_points),
            "retention": schedule.retention,
            "tokens": schedule.tokens,
            "keep": None if schedule.keep is None else list(schedule.keep),
            "weights": None if schedule.keep is not None else list(schedule.weights),
        },
        "cache": {"codec": config.cache.codec, "top_k": config.cache.top_k},
        "source": config.source.model_dump(mode="json", exclude={"image_root"}),
    }


def schedule_of(identity: dict[str, Any]) -> Schedule:
    """The schedule that a cache was made with."""
    method = identity["method"]
    return Schedule(
        layers=method["layers"],
        prune_points=tuple(method["prune_points"]),
        retention=method["retention"],
        tokens=method["tokens"],
        keep=None if method["keep"] is None else tuple(method["keep"]),
        weights=tuple(method["weights"] or ()),
    )
