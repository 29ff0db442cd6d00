"""Which caches can be answered from: those that store keys and values."""

from __future__ import annotations

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import ConfigError

_INSTEAD = {
    "embeds": "`trio-ray generate` answers single samples from embeddings, and jobs/distill.py trains students on them",
    "indices": "`trio-ray generate` answers single samples by prefilling their input again",
}


def require_prefixes(cache: PrunedCache) -> None:
    """Refuse a cache without prefixes as a whole, before its samples would be found unreadable one by one.

    Raises:
        ConfigError: its level is not kv; names the cache, and says what can be done instead.
    """
    if cache.level != "kv":
        raise ConfigError(
            "cache",
            f"{cache.uri} stores {cache.level}, and answers need keys and values: precompute into another output with "
            f"cache.level: kv; {_INSTEAD[cache.level]}",
        )
