"""How many of a cache's questions a student answers right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from trio_ray.cache.fetched import Row
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.evaluate.scoring.exact_match import ExactMatch
from trio_ray.evaluate.scoring.scorer import Truth
from trio_ray.evaluate.scoring.summary import ScoredAnswer, summarise
from trio_ray.kv.embeds import Embeds
from trio_ray.model.replica import Replica
from trio_ray.ordered import ordered_map

_TABLE_BATCH = 256


def measure(replica: Replica, cache: PrunedCache, max_new_tokens: int, batch_size: int, threads: int) -> dict[str, Any]:
    """Exact-match accuracy over the samples with a true answer, with its interval; see `summarise`.

    Args:
        replica: the student.
        cache: of level embeds, made by its teacher.
        max_new_tokens: longest answer.
        batch_size: samples answered together.
        threads: range reads in flight.

    Raises:
        PrefixError, StoreError: a sample cannot be read.
    """
    scorer = ExactMatch()
    scored = []
    reads = ordered_map(lambda row: (row, cache.embeds(row)), _asked(cache), threads, lookahead=2 * batch_size)
    with closing(reads):
        while batch := list(islice(reads, batch_size)):
            answers = _answers(replica, cache, batch, max_new_tokens)
            for (row, _), answer in zip(batch, answers, strict=True):
                truth = Truth((row["answer"],))
                score = scorer.score(answer, truth)
                scored.append(ScoredAnswer(answer, truth, score, None, row["images"][0]["hash"]))
    return summarise(scorer, scored)["overall"]


def _asked(cache: PrunedCache) -> Iterator[Row]:
    """The rows with a true answer."""
    for start in range(0, len(cache), _TABLE_BATCH):
        numbers = range(start, min(start + _TABLE_BATCH, len(cache)))
        yield from (row for row in cache.rows_at(numbers) if row["answer"] is not None)


def _answers(replica: Replica, cache: PrunedCache, batch: list[tuple[Row, Embeds]], max_new_tokens: int) -> list[str]:
    prefixes = replica.prefill_embeds([embeds for _, embeds in batch], positions=cache.method.positions)
    return replica.generate(prefixes, max_new_tokens)
