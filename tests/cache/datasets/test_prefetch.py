"""Batches made ready ahead: the same samples, in order, restored where they are wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from tests.cache.caches import prefix_of
from tests.kv.prefixes import assert_same
from trio_ray.cache.datasets import Batch, PrefixStream, prefetch
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import PrefixError
from trio_ray.kv.prefix import Prefix


def on_cpu(prefix: Prefix) -> Prefix:
    return replace(
        prefix,
        segments=tuple(
            replace(
                segment,
                keys=segment.keys.cpu(),
                values=segment.values.cpu(),
                position=segment.position.cpu(),
                text=segment.text.cpu(),
            )
            for segment in prefix.segments
        ),
    )


@pytest.mark.parametrize("restore", [True, False], ids=["restored", "stored"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_restored_in_their_order(cache: PrunedCache, restore: bool, workers: int) -> None:
    stream = PrefixStream(cache, 5, restore=restore)
    plain = [(batch.state, [row["key"] for row in batch.rows]) for batch in stream]
    ready = list(prefetch(DataLoader(stream, batch_size=None, num_workers=workers), cache, "cpu"))
    assert [(batch.state, [row["key"] for row in batch.rows]) for batch in ready] == plain
    for batch in ready:
        for row, prefix in zip(batch.rows, batch.prefixes, strict=True):
            assert_same(prefix, prefix_of(row["key"]))


def test_it_runs_ahead_and_no_further_than_asked(cache: PrunedCache) -> None:
    drawn: list[int] = []
    reached = threading.Event()

    def counted() -> Iterator[Batch]:
        for number, batch in enumerate(PrefixStream(cache, 1)):
            drawn.append(number)
            if number == 3:
                reached.set()
            yield batch

    ready = prefetch(counted(), cache, "cpu", ahead=2)
    next(ready)
    assert reached.wait(10)  # while we hold the first
    assert not threading.Event().wait(0.2)
    assert len(drawn) <= 5
    ready.close()  # type: ignore[attr-defined]


def test_an_error_of_the_reader_comes_through(cache: PrunedCache) -> None:
    def broken() -> Iterator[Batch]:
        yield next(iter(PrefixStream(cache, 2)))
        raise PrefixError("k", "s3://b/o", "gone")

    ready = prefetch(broken(), cache, "cpu")
    assert len(next(ready)) == 2
    with pytest.raises(PrefixError, match="gone"):
        next(ready)


@pytest.mark.gpu
@pytest.mark.parametrize("restore", [True, False], ids=["restored", "stored"])
def test_on_a_gpu_the_consumers_stream_sees_whole_prefixes(cache: PrunedCache, restore: bool) -> None:
    """Without the event, or with memory given back too early, the bytes would differ."""
    batches = prefetch(PrefixStream(cache, 3, shuffle=False, restore=restore), cache, "cuda")
    keys: list[str] = []
    for batch in batches:
        torch.cuda._sleep(20_000_000)  # the consumer is behind while the next batches are made
        for row, prefix in zip(batch.rows, batch.prefixes, strict=True):
            assert prefix.segments[0].keys.is_cuda
            assert_same(on_cpu(prefix), prefix_of(row["key"]))
            keys.append(row["key"])
    assert keys == cache.keys()
