"""A distillation from its configuration to its metrics."""

from __future__ import annotations

import json
from typing import Any

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cluster.progress import NoProgress, Phase, Progress
from trio_ray.distill.config import DistillConfig
from trio_ray.distill.group import run_group
from trio_ray.distill.student import layer_numbers
from trio_ray.distill.worker import WorkerSpec
from trio_ray.errors import ConfigError
from trio_ray.model.checkpoint import check_checkpoint
from trio_ray.model.loading import model_fingerprint
from trio_ray.store.opening import open_output, open_store

METRICS = "metrics.json"


def run_distillation(config: DistillConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train a student and store it; returns what `metrics.json` says. The same call again goes on where it stopped.

    Below the output are `student/`, a model folder; `checkpoint.safetensors`; `losses.jsonl` and `metrics.json`.

    Args:
        config: the distillation.
        progress: shows the latest step.

    Raises:
        ConfigError: it cannot be run; nothing was loaded.
        IdentityMismatch: the teacher is not the model that made a cache.
        JobFailed: no workers can be started, or one of them died.
        PrefixError: a sample is gone or damaged, and `on_bad` is 'error'.
        StoreError: a cache or the output failed.
    """
    progress = progress or NoProgress()
    progress.begin(Phase("checking"))
    spec = plan_distillation(config)
    metrics = run_group(spec, progress)
    open_store(config.output, config.s3).put(METRICS, json.dumps(metrics, indent=1).encode() + b"\n")
    return metrics


def plan_distillation(config: DistillConfig) -> WorkerSpec:
    """Check all that can be checked without loading a model; returns what the first worker needs. Raises as above."""
    for name in ("cache", "output"):
        if not getattr(config, name):
            raise ConfigError(name, "is missing; give a folder or s3://bucket/prefix")
    replicas = config.replicas.max
    if replicas > config.training.batch_size:
        raise ConfigError("replicas.max", f"{replicas} replicas cannot share batches of {config.training.batch_size}")
    cache = _embeds_cache(config, "cache", config.cache)
    teacher = cache.model_that_made_it(config.teacher).model_copy(update={"dtype": config.teacher.dtype})
    config = config.model_copy(update={"teacher": teacher})
    checkpoint = check_checkpoint(config.teacher)
    folder = checkpoint.folder
    layer_numbers(config.student, checkpoint.config.get_text_config().num_hidden_layers)
    cache.check_model(folder, cache.dataset.identity["model"]["dtype"])
    if len(cache) < replicas:
        raise ConfigError("cache", f"{config.cache} holds {len(cache)} samples; each of {replicas} replicas needs one")
    prefixes = _prefix_cache(config, cache)
    if prefixes is not None:
        prefixes.check_model(folder, prefixes.dataset.identity["model"]["dtype"])
    if config.test.cache is not None:
        _embeds_cache(config, "test.cache", config.test.cache)
    open_output(config.output, config.s3)
    return WorkerSpec(config.absolute(), _identity(config, cache, prefixes, model_fingerprint(folder)))


def _embeds_cache(config: DistillConfig, field: str, uri: str) -> PrunedCache:
    cache = PrunedCache(uri, config.s3)
    if cache.level != "embeds":
        raise ConfigError(field, f"{uri} stores {cache.level}; students read input embeddings (cache.level: embeds)")
    if cache.scope != "prompt":
        raise ConfigError(field, f"{uri} ends with the image; students read whole prompts (cache.scope: prompt)")
    return cache


def _prefix_cache(config: DistillConfig, cache: PrunedCache) -> PrunedCache | None:
    if config.prefixes is None:
        if cache.dataset.identity["cache"]["targets"] == "none":
            raise ConfigError(
                "cache", f"{config.cache} stores no targets: precompute with cache.targets: top_k, or set prefixes"
            )
        return None
    prefixes = PrunedCache(config.prefixes, config.s3)
    if prefixes.level != "kv" or prefixes.scope != "prompt":
        raise ConfigError("prefixes", f"{config.prefixes} must be of level kv and scope prompt")
    return prefixes


def _identity(
    config: DistillConfig, cache: PrunedCache, prefixes: PrunedCache | None, teacher: dict[str, str]
) -> dict[str, Any]:
    """What two runs must share for one to go on from the other's checkpoint."""
    free = {"checkpoint_every", "log_every", "read_threads"}
    return {
        "cache": cache.dataset.identity_hash,
        "samples": cache.commits.digest,
        "prefixes": None if prefixes is None else prefixes.dataset.identity_hash,
        "teacher": teacher,
        "student": config.student.model_dump(mode="json"),
        "loss": config.loss.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=free),
        "workers": config.replicas.max,
    }
