"""Restoring from host memory, where fetching leaves stored bytes, beside the prefill that it replaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from trio_ray.cache.ahead import BATCHES_AT_ONCE, RestoreAhead
from trio_ray.cache.pruned_cache import AHEAD, BATCH_BYTES
from trio_ray.kv.container import CheckedContainer, check_containers, checksum
from trio_ray.kv.prefix import Prefix
from trio_ray.kv.restore import RestoreUnderWay, start_restore
from trio_ray.kv.stage_times import stage_times
from trio_ray.lab.prefill.pruned import Pruned
from trio_ray.lab.restore.samples import StoredSamples, batches_of
from trio_ray.ordered import ordered_map
from trio_ray.tensors import has_triton, measure

LEAST_BATCHES = 8
"""Batches of a pass. There are several, because nothing overlaps with the first one."""

ALIGNMENT = 512


@dataclass(frozen=True)
class HostBatch:
    """Containers in one block of host memory, pinned where there is a GPU.

    Attributes:
        keys: of the samples.
        data: the block.
        containers: views of it.
        checksums: of the containers.
    """

    keys: tuple[str, ...]
    data: Tensor
    containers: tuple[Tensor, ...]
    checksums: tuple[str, ...]

    @classmethod
    def of(cls, samples: StoredSamples, numbers: Sequence[int], device: torch.device) -> HostBatch:
        """Lay out some of the samples as a fetch does."""
        sizes = [len(samples.containers[number]) for number in numbers]
        room = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
        data = torch.empty(room, dtype=torch.uint8, pin_memory=device.type == "cuda")
        views, start = [], 0
        for number, size in zip(numbers, sizes, strict=True):
            views.append(data[start : start + size])
            views[-1].numpy()[:] = samples.containers[number]
            start += -(-size // ALIGNMENT) * ALIGNMENT
        checksums = tuple(checksum(view.numpy().data) for view in views)
        return cls(tuple(samples.keys[number] for number in numbers), data, tuple(views), checksums)

    def compare(self, pool: ThreadPoolExecutor) -> HostBatch:
        """Compare the checksums, in the pool's threads."""
        containers = [container.numpy().data for container in self.containers]
        assert tuple(pool.map(checksum, containers)) == self.checksums
        return self


class Restoring:
    """One codec's samples as a contestant: checked in host threads, restored on the device, both ahead."""

    def __init__(self, samples: StoredSamples, device: torch.device, threads: int) -> None:
        self.samples, self._device, self._threads = samples, device, threads
        self.batches = [HostBatch.of(samples, numbers, device) for numbers in batches_of(samples, BATCH_BYTES)]

    @property
    def pass_samples(self) -> int:
        """Samples that a pass restores."""
        return sum(len(batch.keys) for batch in self._order())

    def run(self) -> None:
        """A pass as a cache makes it: headers and the rest in one thread, the next batch begun while one is restored;
        checksums on the device, or in threads, ahead, where that has none of our kernels.
        """
        on_device = has_triton(self._device)

        def start(batch: HostBatch) -> RestoreUnderWay:
            checksums = batch.checksums if on_device else None
            return start_restore(self.check(batch), self.samples.codec, self._device, checksums=checksums)

        with ThreadPoolExecutor(self._threads) as pool:
            came = ordered_map(
                lambda batch: batch if on_device else batch.compare(pool), self._order(), BATCHES_AT_ONCE, AHEAD
            )
            with closing(RestoreAhead(came, start)) as batches:
                for batch in batches:
                    assert all(isinstance(prefix, Prefix) for prefix in batch), "sound containers were refused"

    def check(self, batch: HostBatch) -> list[CheckedContainer]:
        """Compare the headers."""
        items = list(zip(batch.keys, batch.containers, strict=True))
        checked = check_containers(items, self.samples.codec, self.samples.fingerprint)
        good = [container for container in checked if isinstance(container, CheckedContainer)]
        assert len(good) == len(checked), "sound containers were refused"
        return good

    def _order(self) -> list[HostBatch]:
        passes = -(-LEAST_BATCHES // len(self.batches))
        return self.batches * passes

    def stages(self, rounds: int) -> dict[str, float]:
        """Milliseconds a sample of one batch, stage by stage, each alone and waited for."""
        batch = self.batches[0]
        items = list(zip(batch.keys, batch.containers, strict=True))
        times = stage_times(items, self.samples.codec, self._device, rounds)

        with ThreadPoolExecutor(self._threads) as pool:
            batch.compare(pool)
            taken = [measure(self._device, lambda: batch.compare(pool)).seconds for _ in range(rounds)]
        stages = {f"checksums, {self._threads} threads": 1e3 * median(taken), "headers": times.check}
        for name in ("checksums", "copy", "lossless", "inverse", "restore"):
            stages[name] = getattr(times, name)
        return {name: milliseconds / len(batch.keys) for name, milliseconds in stages.items()}


def compare_with_prefill(
    prefill: Pruned,
    contestants: Mapping[str, Restoring],
    rounds: int,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Prefill and every codec in turns; samples a second, and how many times the prefill's of the same round.

    Args:
        prefill: over a workload of the same model.
        contestants: by codec.
        rounds: turns.
        on_step: told what begins.
    """
    device = prefill.replica.device
    on_step("warm-up: prefill")
    _prefill(prefill, -1)
    for name, contestant in contestants.items():
        on_step(f"warm-up: {name}")
        contestant.run()
    rates: dict[str, list[float]] = {name: [] for name in ("prefill", *contestants)}
    for number in range(rounds):
        on_step(f"round {number + 1} of {rounds}")
        seconds = measure(device, partial(_prefill, prefill, number)).seconds
        rates["prefill"].append(len(prefill.samples) / seconds)
        for name, contestant in contestants.items():
            rates[name].append(contestant.pass_samples / measure(device, contestant.run).seconds)
    return {name: _result(name, rates, contestants) for name in rates}


def _prefill(prefill: Pruned, number: int) -> None:
    for batch in prefill.batches(number):
        prefill.run(batch)
    prefill.finish()


def _result(name: str, rates: Mapping[str, list[float]], contestants: Mapping[str, Restoring]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "samples_per_s": median(rates[name]),
        "rounds": rates[name],
        "times_prefill": median(own / other for own, other in zip(rates[name], rates["prefill"], strict=True)),
    }
    if name in contestants:
        samples = contestants[name].samples
        count = len(samples.keys)
        found |= {
            "stored_mb": samples.stored_bytes / count / 1e6,
            "ratio": samples.plain_bytes / samples.stored_bytes,
            "gb_per_s_16bit": found["samples_per_s"] * samples.plain_bytes / count / 1e9,
        }
    return found
