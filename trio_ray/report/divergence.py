"""How far the codec moves answers: stored states beside those of a new prefill that were never stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trio_ray.cache.input_samples import InputChanged, Reread, read_what_is_there
from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.calibration.codec_loss import without_last_rows
from trio_ray.config import ModelConfig, PromptConfig
from trio_ray.errors import ConfigError
from trio_ray.kv.prefix import Prefix
from trio_ray.model.checkpoint import check_checkpoint
from trio_ray.model.continuation import Continuation
from trio_ray.model.replica import Replica
from trio_ray.source.sample import BadSample

BATCH = 8


def measure_divergence(
    cache: PrunedCache,
    model: ModelConfig,
    how: Reread,
    samples: int,
    on_done: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of the first answer token, one number a sample, nats.

    The prompt's last row is computed again, over the stored rows and over the rows of a new prefill that keeps the same
    tokens. On another device than the cache was made on, rounding alone makes the two differ a little.

    Args:
        cache: of level kv and scope prompt.
        model: that made it; see `PrunedCache.model_that_made_it`.
        how: the input is read again.
        samples: to draw at most, evenly. Those whose input cannot be read any more, or that cannot be restored, are
            left out.
        on_done: told how many are done.

    Raises:
        ConfigError: the cache stores no keys and values behind a prompt, or there is no such model.
        IdentityMismatch: another model made it.
        StoreError: the cache cannot be read.
    """
    if cache.level != "kv" or cache.scope != "prompt":
        raise ConfigError(
            "--divergence", "needs a cache with keys and values behind whole prompts (level kv, scope prompt)"
        )
    config = cache.model_that_made_it(model)
    prompt = PromptConfig.model_validate(cache.dataset.identity["prompt"])
    cache.check_model(check_checkpoint(config, prompt).folder, config.dtype)
    replica = Replica.load(config, prompt)
    count = min(samples, len(cache))
    numbers = [place * len(cache) // count for place in range(count)]
    nats: list[float] = []
    for start in range(0, count, BATCH):
        nats += _batch(cache, replica, cache.rows_at(numbers[start : start + BATCH]), how)
        on_done(min(count, start + BATCH))
    return np.array(nats, np.float64)


def _batch(cache: PrunedCache, replica: Replica, rows: list[dict[str, Any]], how: Reread) -> list[float]:
    preparer = replica.preparer(cache.dataset.identity["source"]["max_pixels"], cache.instruction)
    read = read_what_is_there(cache, rows, how)
    prepared = [None if isinstance(sample, InputChanged) else preparer.prepare(sample) for sample in read]
    stored = cache.restore(cache.fetch(rows), replica.device)
    good = [
        (row, sample, prefix.prefix)
        for row, sample, prefix in zip(rows, prepared, stored, strict=True)
        if sample is not None and not isinstance(sample, BadSample) and isinstance(prefix, StoredPrefix)
    ]
    if not good:
        return []
    kept = [row["kept"] for row, _, _ in good]
    fresh = replica.prefill(
        [sample for _, sample, _ in good], cache.method, scope=cache.scope, top_k=cache.top_k, known=kept
    ).prefixes
    tails = [[row["prompt_ids"][-1]] for row, _, _ in good]
    was, now = (_first_token(replica, prefixes, tails) for prefixes in (fresh, [prefix for _, _, prefix in good]))
    return (was.exp() * (was - now)).sum(-1).clamp_min(0).tolist()


def _first_token(replica: Replica, prefixes: Sequence[Prefix], tails: list[list[int]]) -> Tensor:
    """(samples, vocabulary) log-probabilities behind the prompts, whose last row is computed again."""
    earlier = [without_last_rows(prefix, 1) for prefix in prefixes]
    return Continuation(replica.decoder, earlier, room=1).extend(tails).log_softmax(-1)
