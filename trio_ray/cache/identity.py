"""The cache identity: everything that decides what a stored prefix is, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trio_ray.config import JobConfig
from trio_ray.kv.codecs.codec import Codec
from trio_ray.kv.codecs.registry import make_codec
from trio_ray.kv.header import CONTAINER_VERSION
from trio_ray.method.method import Method
from trio_ray.model.loading import model_fingerprint, read_model_config, stop_tokens_of
from trio_ray.store.bases import read_basis
from trio_ray.store.objects import ObjectStore


def build_identity(
    config: JobConfig, folder: Path, dtype: torch.dtype, method: Method, codec: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The identity of the cache that a job writes.

    It holds contents, not names: a model that moves to another folder keeps it. How the work is spread, and the
    attention kernel, are no part of it.

    Args:
        config: the job.
        folder: the model's folder.
        dtype: the replicas' arithmetic, which is also the type of raw keys and values.
        method: which tokens the prefixes keep.
        codec: all its parameters, a calibrated basis named by its hash; None where no keys and values are stored, or
            where it is still to be chosen (`with_codec`).
    """
    return {
        "container_version": CONTAINER_VERSION,
        "model": {
            **model_fingerprint(folder),
            "dtype": str(dtype).removeprefix("torch."),
            "matmul": config.model.matmul,
        },
        "prompt": config.prompt.model_dump(mode="json"),
        "method": method.to_dict(),
        "cache": {
            "level": config.cache.level,
            "scope": config.cache.scope,
            "instruction": config.cache.selected_under,
            "targets": config.cache.targets,
            "targets_stop_tokens": list(_stop_tokens(folder)) if config.cache.targets != "none" else None,
            "codec": None if codec is None else dict(codec),
            "top_k": config.cache.top_k,
        },
        "source": config.source.model_dump(mode="json", exclude={"image_root", "allow_any_path"}),
    }


def _stop_tokens(folder: Path) -> tuple[int, ...]:
    """They end the answers that targets are stored of."""
    return stop_tokens_of(folder, read_model_config(folder))


def with_codec(identity: Mapping[str, Any], codec: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same identity with this codec."""
    return {**identity, "cache": {**identity["cache"], "codec": None if codec is None else dict(codec)}}


def codec_of(identity: dict[str, Any], store: ObjectStore) -> Codec | None:
    """The codec of the cache in `store`, with its calibrated basis where it has one; None for a cache without keys and
    values (`cache.level`).

    Raises:
        CodecError: this version does not know it.
        StoreError: the basis cannot be read, or is not as it was written.
    """
    spec = identity["cache"]["codec"]
    return None if spec is None else make_codec(spec, lambda digest: read_basis(store, digest))


def method_of(identity: Mapping[str, Any]) -> Method:
    """The method that a cache was made with."""
    return Method.from_dict(identity["method"])
