"""The Ray actor that answers questions from stored prefixes."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cluster.actors import PooledActor, WantsMore
from trio_ray.config import PromptConfig
from trio_ray.evaluate.config import AnsweringConfig, EvaluateConfig
from trio_ray.evaluate.decode import AllRequested, Decoded, PrefixDecoder, needs_prefixes
from trio_ray.evaluate.join import Task
from trio_ray.model.decoder import default_device
from trio_ray.model.replica import Replica

SMALL_CHUNKS_IN_ENGINE = 4
"""The smallest chunks have so many questions that this many of them fill an engine."""
MOST_AT_ONCE = 16
"""Threads of an actor, each with a chunk."""


@dataclass(frozen=True)
class Chunk:
    """Questions that an actor is given at a time; chunks are numbered in the questions' order."""

    number: int
    tasks: tuple[Task, ...]

    def __str__(self) -> str:
        """Its first and last key."""
        return f"{self.tasks[0].row['key']!r} .. {self.tasks[-1].row['key']!r}"


def chunks_of(tasks: Sequence[Task], settings: AnsweringConfig, replicas: int) -> list[Chunk]:
    """All tasks, in order, in chunks of `settings.chunk_questions`.

    For several replicas they become smaller towards the end, so that no replica works for long when the others have
    nothing left to do.
    """
    most, least = settings.chunk_questions, _least(settings)
    chunks: list[Chunk] = []
    start = 0
    while start < len(tasks):
        half_of_a_share = (len(tasks) - start) // (2 * replicas)
        size = most if replicas == 1 else min(most, max(least, half_of_a_share))
        chunks.append(Chunk(len(chunks), tuple(tasks[start : start + size])))
        start += size
    return chunks


def chunks_at_once(settings: AnsweringConfig) -> int:
    """Chunks that an actor works on at a time: as many of the smallest as fill its engine, one whose prefixes are being
    restored, and one whose prefixes are being fetched.
    """
    return min(MOST_AT_ONCE, -(-settings.sequences // _least(settings)) + 2)


def _least(settings: AnsweringConfig) -> int:
    """Questions of the smallest chunks, but for the last one."""
    return min(settings.chunk_questions, max(1, settings.sequences // SMALL_CHUNKS_IN_ENGINE))


class AnswerActor(PooledActor[Chunk]):
    """Hosts a model. Prefixes never pass through Ray: rows of the table come in and texts go out."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config

    def load(self) -> str:
        """Load the model, and on a GPU warm up. See `PooledActor`."""
        config = self._config
        torch.set_num_threads(config.replicas.torch_threads)
        cache = PrunedCache(config.cache, config.s3)
        prompt = PromptConfig.model_validate(cache.dataset.identity["prompt"])
        device = default_device()
        warm_up = device.type == "cuda" and needs_prefixes(cache, config.answering)
        with ThreadPoolExecutor(1) as beside:
            pinned = beside.submit(cache.prepare_pinned_memory, config.answering.read_threads) if warm_up else None
            replica = Replica.load(config.model, prompt, device)
            if pinned is not None:
                pinned.result()
        self._decoder = PrefixDecoder(cache, replica, config.answering)
        if warm_up:
            self._decoder.warm_up()
        gc.collect()
        gc.freeze()  # else every collection of the oldest objects looks at all modules: 0.3 s, in which nothing decodes
        return f"{replica.device} {str(replica.dtype).removeprefix('torch.')} {replica.attention}"

    def run(self, work: Chunk) -> Iterator[Decoded | WantsMore]:
        """Answer a chunk. A `WantsMore` comes when all of its prefixes have been requested, its answers at the end."""
        # Not `yield from`: Ray resumes the generator with `send`, which must not reach the iterators inside.
        for news in self._decoder.overlapping(work.tasks):
            yield WantsMore() if isinstance(news, AllRequested) else news
