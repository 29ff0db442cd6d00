"""Restoring from a folder and from S3, beside what the bare client reads of the same ranges."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from trio_ray.cache.fetched import Row
from trio_ray.cache.pruned_cache import BATCH, PrunedCache, StoredPrefix
from trio_ray.cache.ranges import Member, Run, coalesce_ranges
from trio_ray.config import S3Config
from trio_ray.kv.container import checksum
from trio_ray.lab.restore.clients import bare_clients
from trio_ray.lab.restore.samples import StoredSamples, identity_of
from trio_ray.store.bases import store_basis
from trio_ray.store.dataset import create_or_check
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store
from trio_ray.store.tables import place_columns
from trio_ray.tensors import measure

OBJECT_SAMPLES = 32
"""Prefixes in one object, in a row as in a part's tar."""

ALIGNMENT = 512


@dataclass(frozen=True)
class StoredCache:
    """A cache whose rows are in memory, so that it can be read repeatedly.

    Attributes:
        uri: where it is.
        s3: how that is reached.
        rows: the columns that reading takes.
        plain_bytes: of all their keys and values, in 16 bit.
    """

    uri: str
    s3: S3Config
    rows: tuple[Row, ...]
    plain_bytes: int

    def runs(self) -> list[Run]:
        """The ranges that reading it asks for."""
        found: list[Run] = []
        for first in range(0, len(self.rows), BATCH):
            members = [
                Member(number, row["key"], *(row[column] for column in place_columns("kv")))
                for number, row in enumerate(self.rows[first : first + BATCH])
            ]
            found += coalesce_ranges(members)[0]
        return found


def write_cache(uri: str, s3: S3Config, samples: StoredSamples, largest_bytes: int) -> StoredCache:
    """Store the samples again and again, up to `largest_bytes`, as parts' tars hold them.

    Args:
        uri: an empty folder or prefix.
        s3: how it is reached.
        samples: what to store.
        largest_bytes: upper bound, but never fewer than all samples once.
    """
    store = open_store(uri, s3)
    create_or_check(store, identity_of(samples.codec), OBJECT_SAMPLES)
    if samples.basis is not None:
        store_basis(store, samples.basis)
    times = max(1, largest_bytes // samples.stored_bytes)
    numbers = [number for _ in range(times) for number in range(len(samples.keys))]
    rows: list[Row] = []
    for first in range(0, len(numbers), OBJECT_SAMPLES):
        name = f"data/made-up/{first // OBJECT_SAMPLES:05d}-1.tar"
        rows += _write_object(store, name, samples, numbers[first : first + OBJECT_SAMPLES])
    return StoredCache(uri, s3, tuple(rows), samples.plain_bytes * times)


def _write_object(store: ObjectStore, name: str, samples: StoredSamples, numbers: list[int]) -> Iterator[Row]:
    offset = 0
    with store.writer(name) as writer:
        for number in numbers:
            header, container = bytes(ALIGNMENT), samples.containers[number]
            writer.write(header)
            writer.write(container)
            writer.write(bytes(-len(container) % ALIGNMENT))
            yield {
                "key": samples.keys[number],
                "kv_object": name,
                "kv_offset": offset + len(header),
                "kv_length": len(container),
                "kv_checksum": checksum(container),
            }
            offset += len(header) + -(-len(container) // ALIGNMENT) * ALIGNMENT


def measure_store(
    cache: StoredCache,
    device: torch.device,
    threads: int,
    rounds: int,
) -> dict[str, Any]:
    """Our reading and each bare client in turns: samples and bytes a second, and processor time a range, for each."""
    opened = PrunedCache(cache.uri, cache.s3)
    runs = cache.runs()
    size = sum(run.size for run in runs)
    bare = bare_clients(cache.uri, cache.s3)

    def restore() -> None:
        with closing(opened.restored(cache.rows, device, threads=threads)) as batches:
            for batch in batches:
                assert all(isinstance(sample, StoredPrefix) for sample in batch)

    def fetch() -> None:
        with closing(opened.fetched(cache.rows, threads=threads)) as batches:
            for _ in batches:
                pass

    works: dict[str, Callable[[], object]] = {"restore": restore, "fetch and check": fetch}
    works |= {name: partial(client.read, runs, threads) for name, client in bare.items()}
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            before = time.process_time()
            seconds[name].append(measure(device, work).seconds)
            cpu[name].append(time.process_time() - before)
    for client in bare.values():
        client.close()
    return {
        name: {
            "samples_per_s": len(cache.rows) / median(seconds[name]),
            "gb_per_s": size / median(seconds[name]) / 1e9,
            "cpu_ms_per_range": 1e3 * median(cpu[name]) / len(runs),
            "ranges": len(runs),
            "mb_per_range": size / len(runs) / 1e6,
            "rounds": seconds[name],
        }
        for name in works
    }
