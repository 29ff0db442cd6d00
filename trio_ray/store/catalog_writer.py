"""Appending to the catalog: during a run as parts are committed, and at its end whatever is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from trio_ray.errors import ObjectDamaged, ObjectMissing, StoreError
from trio_ray.store.catalog import (
    WORTH_IT,
    Catalog,
    create_version,
    read_catalog,
    read_segment,
    usable_catalog,
    write_segment,
)
from trio_ray.store.commit_table import CommitTable, Part, list_commits, read_rows
from trio_ray.store.key_index import IndexRef, merge_indexes, write_index
from trio_ray.store.locators import LOCATOR, read_locators
from trio_ray.store.objects import ObjectStore

SEGMENT_PARTS = 1000
"""Parts of a full segment."""

ONE_INDEX_LOCATORS = 1 << 24
"""So many samples have one index when a run ends: some 1.2 GB are read and written for it."""

_MERGE_RATIO = 4
"""An index is merged with the one before it unless that one is more than so many times larger: so of n samples there
are about log n indexes, and each sample is written about log n times."""

_TRIES = 5

log = logging.getLogger(__name__)


class CatalogWriter:
    """Appends a segment for every `SEGMENT_PARTS` parts that a run commits, in a thread of its own.

    The run does not depend on it: what fails is logged, and made up for when the run ends.
    """

    def __init__(self, store: ObjectStore, threads: int) -> None:
        self._store = store
        self._threads = threads
        self._waiting: set[Part] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")
        self._appending: Future[None] | None = None

    def committed(self, part: Part) -> None:
        """Note that a part has been committed. Takes no time."""
        self._waiting.add(part)
        if len(self._waiting) >= SEGMENT_PARTS and (self._appending is None or self._appending.done()):
            parts, self._waiting = self._waiting, set()
            self._appending = self._thread.submit(self._append, parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def _append(self, parts: set[Part]) -> None:
        try:
            append_parts(self._store, parts, self._threads)
        except StoreError as error:
            log.warning("%s; a segment of the catalog is made later", error)


def append_parts(store: ObjectStore, parts: Iterable[Part], threads: int) -> None:
    """Append these parts to the catalog, if they are committed. What it takes depends on their number alone.

    Raises:
        StoreError: a record cannot be read, or something not be written. The catalog is what it was before.
    """
    wanted = set(parts)
    shards = sorted({shard for shard, _ in wanted})
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda shard: list_commits(store, shard), shards)
        listed = {part: info for of_shard in found for part, info in of_shard.items() if part in wanted}
    _append(store, usable_catalog(store), read_rows(store, listed, threads), threads)


def complete_catalog(store: ObjectStore, commits: CommitTable, threads: int) -> int:
    """Append all committed parts that the catalog lacks, if there are many parts; make a damaged catalog anew.

    Args:
        store: the cache.
        commits: all its parts, as they have just been read.
        threads: that read and write.

    Returns:
        The number of parts appended.

    Raises:
        StoreError: something cannot be read or written. The catalog is what it was before.
    """
    if len(commits) < WORTH_IT:
        return 0
    if any(commits.dead_segments):
        appended = _append(store, Catalog(commits.catalog.version, (), ()), commits.rows, threads)
    else:
        appended = _append(store, commits.catalog, commits.tail, threads)
    if appended:
        merge_all_indexes(store)
    return appended


def merge_all_indexes(store: ObjectStore) -> None:
    """Make one index of all, if together they are small enough: then one read finds any key.

    Raises:
        StoreError: one cannot be read, or the new one not be written. The catalog is what it was before.
    """
    catalog = read_catalog(store)
    if len(catalog.indexes) > 1 and sum(index.locators for index in catalog.indexes) <= ONE_INDEX_LOCATORS:
        index = merge_indexes(store, catalog.indexes)
        # Where another writer is faster, its version stays, and gc deletes this index.
        create_version(store, Catalog(catalog.version + 1, catalog.segments, (index,)))


def _append(store: ObjectStore, catalog: Catalog, rows: pa.Table, threads: int) -> int:
    """Append rows to a version of the catalog, or to a newer one that another writer has created meanwhile."""
    total = 0
    for first in range(0, rows.num_rows, SEGMENT_PARTS):
        piece, locators = _with_locators(store, rows.slice(first, SEGMENT_PARTS), threads)
        if not piece.num_rows:
            continue
        for _ in range(_TRIES):
            longer = _longer(store, catalog, piece, locators)
            if create_version(store, longer):
                catalog = longer
                break
            catalog = read_catalog(store)
        else:
            raise StoreError(store.uri, "other writers were faster at every try to append to its catalog")
        total += piece.num_rows
    return total


def _longer(store: ObjectStore, catalog: Catalog, rows: pa.Table, locators: list[np.ndarray]) -> Catalog:
    """The version behind `catalog`, with these rows. All but the version itself is written."""
    first, beyond = catalog.parts, catalog.parts + rows.num_rows
    segments, indexes = catalog.segments, catalog.indexes
    if segments and segments[-1].parts + rows.num_rows <= SEGMENT_PARTS:
        rows = pa.concat_tables([read_segment(store, segments[-1]), rows])
        segments = segments[:-1]
    numbered = np.concatenate(locators) if locators else np.zeros(0, LOCATOR)
    numbered["commit"] = np.repeat(np.arange(first, beyond), [len(one) for one in locators])
    indexes = (*indexes, write_index(store, numbered, first, beyond))
    segments = (*segments, write_segment(store, rows))
    return Catalog(catalog.version + 1, segments, _merged(store, indexes))


def _merged(store: ObjectStore, indexes: tuple[IndexRef, ...]) -> tuple[IndexRef, ...]:
    """The same with the last ones merged, as far as `_MERGE_RATIO` demands; by one merge."""
    taken = 1
    locators = indexes[-1].locators
    while taken < len(indexes) and indexes[-taken - 1].locators <= _MERGE_RATIO * locators:
        taken += 1
        locators += indexes[-taken].locators
    if taken == 1:
        return indexes
    merged = merge_indexes(store, indexes[-taken:])
    if indexes[-1].name != merged.name:
        store.delete(indexes[-1].name)  # it was written a moment ago, and no version names it
    return (*indexes[:-taken], merged)


def _with_locators(store: ObjectStore, rows: pa.Table, threads: int) -> tuple[pa.Table, list[np.ndarray]]:
    """The rows whose locators can be read, and these. The others stay out of the catalog: readers name what is wrong
    with them.
    """

    def read(place: int) -> np.ndarray | None:
        name, committed, stored = (
            rows.column(column)[place].as_py() for column in ("locators_name", "locators_checksum", "stored")
        )
        if name is None:
            return np.zeros(0, LOCATOR) if stored == 0 else None
        try:
            return read_locators(store, name, committed, stored)
        except (ObjectDamaged, ObjectMissing) as error:
            log.warning("%s; its part is left out of the catalog", error)
            return None

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(read, range(rows.num_rows)))
    sound = [place for place, locators in enumerate(found) if locators is not None]
    return rows.take(pa.array(sound, pa.int64())), [locators for locators in found if locators is not None]
