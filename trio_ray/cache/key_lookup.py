"""From a key to the place of its sample: one small read in each index of the catalog, and in none once it is warm."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trio_ray.errors import ObjectDamaged
from trio_ray.recent import Recent
from trio_ray.store.commit_table import CommitTable
from trio_ray.store.key_index import MOST_OF_A_KEY, IndexRef, read_bucket
from trio_ray.store.layout import commit_name
from trio_ray.store.locators import LOCATOR, key_hash, matching, read_locators, sort_locators
from trio_ray.store.objects import ObjectStore

RECENT_BYTES = 64 << 20
"""Upper bound on the memory of buckets that are kept for the next keys."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample is: the number of its part in the commit table, its row there; its member's first byte, bytes and
    checksum (hex).
    """

    part: int
    row: int
    offset: int
    length: int
    checksum: str


class KeyLookup:
    """Finds keys. For several threads.

    A part that the catalog lacks has its locators read from the part's own file, with the first key that is looked for.
    """

    def __init__(self, store: ObjectStore, commits: CommitTable, threads: int) -> None:
        self._store = store
        self._commits = commits
        self._threads = threads
        self._buckets: Recent[tuple[str, int], np.ndarray] = Recent(RECENT_BYTES, lambda bucket: bucket.nbytes)
        self._tail_read: pa.Table | None = None
        self._read: dict[str | None, np.ndarray] = {}
        self._reading = threading.Lock()

    def find(self, key: str, shard: str | None) -> list[Place]:
        """All samples of a key, in a shard if it is given, by part and row; of very many, some.

        Raises:
            ObjectDamaged: an index, or a part's locators, are not as they were written.
            StoreError: they cannot be read.
        """
        wanted = key_hash(key)
        found = [matching(self._bucket(index, wanted[0]), wanted) for index in self._commits.catalog.indexes]
        self._commits.need(number for one in found for number in one["commit"].tolist())
        if shard is not None and any(len(one) == MOST_OF_A_KEY for one in found):
            return self._places(matching(self._locators(shard), wanted), shard)
        return self._places(np.concatenate([*found, matching(self._tail(shard), wanted)]), shard)

    def _places(self, locators: np.ndarray, shard: str | None) -> list[Place]:
        places = []
        for locator in locators:
            part = int(locator["commit"])
            if self._commits.counts(part) and shard in (None, self._commits.shard_of(part)):
                offset, length, row = (int(locator[name]) for name in ("offset", "length", "row"))
                places.append(Place(part, row, offset, length, locator["checksum"].tobytes().hex()))
        if len(places) > 1:
            shard_of, value = self._commits.shard_of, self._commits.value
            places.sort(key=lambda place: (shard_of(place.part), value(place.part, "part"), place.row))
        return places

    def _bucket(self, index: IndexRef, high: int) -> np.ndarray:
        bucket = index.bucket_of(high)
        return self._buckets.get((index.name, bucket), lambda: read_bucket(self._store, index, bucket))

    def _tail(self, shard: str | None) -> np.ndarray:
        """Locators of the parts that the catalog lacks, of a shard if it is given, sorted."""
        tail = self._commits.tail
        if not tail.num_rows:
            return np.zeros(0, LOCATOR)
        with self._reading:  # else every thread that asks meanwhile would read the files, too
            if tail is not self._tail_read:
                self._tail_read, self._read = tail, {}
            scope = None if None in self._read else shard
            if scope not in self._read:
                shards = tail.column("shard").to_pylist()
                lacking = [place for place, one in enumerate(shards) if scope in (None, one)]
                self._read[scope] = self._parts_locators(self._commits.catalog.parts + place for place in lacking)
            return self._read[scope]

    def _locators(self, shard: str) -> np.ndarray:
        """Locators of all parts of a shard, sorted, from the parts' own files."""
        return self._parts_locators(self._commits.numbers[self._commits.places_of(shard)].tolist())

    def _parts_locators(self, parts: Iterable[int]) -> np.ndarray:
        with ThreadPoolExecutor(self._threads) as pool:
            return sort_locators(np.concatenate([np.zeros(0, LOCATOR), *pool.map(self._of_part, parts)]))

    def _of_part(self, part: int) -> np.ndarray:
        stored = int(self._commits.value(part, "stored"))
        if not stored:
            return np.zeros(0, LOCATOR)
        file = self._commits.file(part, "locators")
        if file is None:
            name = commit_name(self._commits.shard_of(part), self._commits.value(part, "part"))
            raise ObjectDamaged(self._store.uri_of(name), "lists no locators; restore it from a copy")
        locators = read_locators(self._store, file.name, file.checksum, stored).copy()
        locators["commit"] = part
        return locators
