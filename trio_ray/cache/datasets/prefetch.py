"""Batches made ready on a device while the model is busy with the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from trio_ray.cache.datasets.batch import Batch
from trio_ray.cache.fetched import StoredBytes
from trio_ray.cache.pruned_cache import PrunedCache, StoredPrefix
from trio_ray.cache.unreadable import UnreadablePrefix
from trio_ray.kv.prefix import Prefix, Segment
from trio_ray.ordered import ordered_map
from trio_ray.tensors import to_device


def prefetch(
    batches: Iterable[Batch], cache: PrunedCache, device: torch.device | str, ahead: int = 2
) -> Iterator[Batch]:
    """Batches with restored prefixes on a device, in order.

    A thread draws the batches, and another one restores them on the device; on a GPU it does so on a stream of its own,
    so that restoring runs beside the model. Prefixes that were restored on the CPU are copied. Keys, values, positions
    and text marks lie on the device afterwards, the small tensors stay on the CPU.

    Args:
        batches: from a `PrefixStream`, or a `DataLoader` of either dataset.
        cache: the one that they come from.
        device: where the prefixes are wanted.
        ahead: ready batches that may wait there; with the one in work and the one in use, `ahead` + 2 take up memory.

    Raises:
        PrefixDamaged: a sample's bytes cannot be understood.
    """
    mover = _Mover(cache, torch.device(device))
    drawn = iter(batches)  # here, as a data loader forks its workers, which must not happen beside running threads
    with closing(ordered_map(mover.move, drawn, threads=1, lookahead=ahead)) as moved:
        for batch, ready in moved:
            if ready is not None:
                _hand_over(batch, ready)
            yield batch


class _Mover:
    """Restores and copies on a side stream."""

    def __init__(self, cache: PrunedCache, device: torch.device) -> None:
        self._cache = cache
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def move(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """The batch on the device, and the event behind the work on it."""
        if self._stream is None:
            return self._moved(batch), None
        with torch.cuda.stream(self._stream):
            return self._moved(batch), self._stream.record_event()

    def _moved(self, batch: Batch) -> Batch:
        stored = [sample for sample in batch.samples if isinstance(sample, StoredBytes)]
        restored = iter(self._cache.restore(stored, self._device))
        return replace(
            batch,
            samples=[
                _sound(next(restored)) if isinstance(sample, StoredBytes) else self._sample(sample)
                for sample in batch.samples
            ],
        )

    def _sample(self, sample: StoredPrefix) -> StoredPrefix:
        segments = tuple(_segment_on(segment, self._device) for segment in sample.prefix.segments)
        return StoredPrefix(sample.row, replace(sample.prefix, segments=segments))


def _sound(outcome: StoredPrefix | UnreadablePrefix) -> StoredPrefix:
    if isinstance(outcome, UnreadablePrefix):
        raise outcome
    return outcome


def _segment_on(segment: Segment, device: torch.device) -> Segment:
    keys, values, position, text = (to_device(tensor, device) for tensor in _tensors(segment))
    return Segment(segment.first_layer, keys, values, position, text)


def _tensors(segment: Segment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return segment.keys, segment.values, segment.position, segment.text


def _hand_over(batch: Batch, ready: torch.cuda.Event) -> None:
    """Let the consumer's stream wait for the batch, and its memory not be used again before that stream is done."""
    prefixes: list[Prefix] = batch.prefixes
    if not prefixes:
        return
    stream = torch.cuda.current_stream(prefixes[0].segments[0].keys.device)
    stream.wait_event(ready)
    for prefix in prefixes:
        for segment in prefix.segments:
            for tensor in _tensors(segment):
                tensor.record_stream(stream)
