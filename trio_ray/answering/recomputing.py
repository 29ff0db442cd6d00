"""What a cache is worth on this machine: its questions answered from it, and answered again from their images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from trio_ray.answering.config import AnsweringConfig
from trio_ray.answering.decode import PrefixDecoder
from trio_ray.answering.join import Task
from trio_ray.cache import PrunedCache
from trio_ray.config import JobConfig
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica, make_schedule, make_selector, make_zipper
from trio_ray.pipeline.packing import pack
from trio_ray.source.reader import read_shard
from trio_ray.source.shards import split_file
from trio_ray.store.inputs import StoreOpener, expand_inputs

Name = tuple[str, str]
"""Shard and key."""


@dataclass(frozen=True)
class Comparison:
    """Answers both ways, and the seconds from a loaded model and an opened cache to the last answer as text."""

    stored: dict[Name, str]
    recomputed: dict[Name, str]
    stored_s: float
    recomputed_s: float
    read_bytes: int

    @property
    def different(self) -> list[Name]:
        """What the two ways do not answer alike."""
        return [name for name, answer in self.stored.items() if self.recomputed.get(name) != answer]


def compare(cache: PrunedCache, config: JobConfig, replica: Replica, settings: AnsweringConfig) -> Comparison:
    """Answer all questions of a cache both ways; decoding is the same.

    Args:
        cache: of level kv and scope prompt.
        config: of the job that made it.
        replica: the model that made it.
        settings: how answers are decoded.

    Raises:
        StoreError: the input or the cache could not be read.
    """
    started = time.perf_counter()
    rows = cache.rows_at(range(len(cache)))
    done = PrefixDecoder(cache, replica, settings).run([Task(number, "", row) for number, row in enumerate(rows)])
    stored_s = time.perf_counter() - started
    stored = {(rows[number]["shard"], rows[number]["key"]): answer for number, answer in done.answers.items()}
    started = time.perf_counter()
    recomputed = _recompute(config, replica, settings.max_new_tokens)
    return Comparison(stored, recomputed, stored_s, time.perf_counter() - started, done.read_bytes)


def _recompute(config: JobConfig, replica: Replica, max_new_tokens: int) -> dict[Name, str]:
    schedule, selector = make_schedule(config.method, replica.decoder.depth), make_selector(config.method)
    answers: dict[Name, str] = {}
    for shard, samples in _samples(config, replica):
        for batch in pack(samples, config.pipeline.batch_rows):
            prefixes = replica.prefill(batch, schedule, selector, zipper=make_zipper(config.method))
            texts = replica.generate(prefixes, max_new_tokens)
            answers |= {(shard, sample.key): text for sample, text in zip(batch, texts, strict=True)}
    return answers


def _samples(config: JobConfig, replica: Replica) -> Iterator[tuple[str, Iterator[PreparedSample]]]:
    """The good samples of each shard, as a job prepares them."""
    preparer = replica.preparer(config.source.max_pixels, config.cache.selected_under)
    opener = StoreOpener(config.s3)
    for file in expand_inputs(config.input, config.s3):
        for shard in split_file(file.uri, file.size, file.etag, config.source, opener):
            yield shard.name, preparer.good(read_shard(shard, config.source, opener))
