"""Prefixes of stored samples, whatever the cache holds of them: read, or computed from what is there."""

from __future__ import annotations

from typing import Any

from trio_ray.cache.input_samples import InputChanged, Reread, read_again
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.kv.prefix import Prefix
from trio_ray.model.replica import Replica
from trio_ray.source.sample import BadSample


def prefixes_of(cache: PrunedCache, replica: Replica, rows: list[dict[str, Any]], reread: Reread) -> list[Prefix]:
    """The prefixes of these rows: of level kv as they are stored; of level embeds from the stored embeddings, so that
    all layers hold the tokens of the first prune point; of level indices by prefilling the input again, unscored.

    Raises:
        PrefixError: something stored, or the input, is not what it was.
        StoreError: the cache or the input cannot be read.
    """
    if cache.level == "kv":
        return [item.prefix for item in cache.stream(rows, replica.device)]
    if cache.level == "embeds":
        top_k = 0 if cache.scope == "image" else cache.top_k
        return replica.prefill_embeds([cache.embeds(row) for row in rows], top_k, cache.method.positions)
    preparer = replica.preparer(cache.dataset.identity["source"]["max_pixels"], cache.instruction)
    samples = [preparer.prepare(sample) for sample in read_again(cache, rows, reread)]
    good = [sample for sample in samples if not isinstance(sample, BadSample)]
    if len(good) < len(samples):
        bad = next(sample for sample in samples if isinstance(sample, BadSample))
        raise InputChanged(bad.key, cache.uri, f"it was sound, and now: {bad.detail}")
    kept = [row["kept"] for row in rows]
    return replica.prefill(good, cache.method, scope=cache.scope, top_k=cache.top_k, known=kept).prefixes
