"""Appending to the catalog: during a run as parts are committed, and at its end whatever is missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trio_ray.errors import ObjectDamaged, ObjectMissing, StoreError
from trio_ray.store.catalog import (
    TRIES,
    Catalog,
    Seal,
    create_version,
    read_catalog,
    read_segment,
    unseal,
    usable_catalog,
    write_segment,
)
from trio_ray.store.commit_table import CommitTable, Part, list_commits, read_commits, read_rows
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

LOOK_S = 2.0
"""Seconds after which a run that commits looks whether another one has sealed the catalog meanwhile: until then readers
do not see what it commits. It is one LIST request."""

log = logging.getLogger(__name__)


class CatalogWriter:
    """Appends a segment for every `SEGMENT_PARTS` parts that a run commits, in a thread of its own.

    The run has unsealed the catalog. Another run may seal it while this one works; so it is looked at now and then,
    and unsealed again. The run does not depend on either: what fails is logged, and made up for when the run ends.
    """

    def __init__(self, store: ObjectStore, threads: int) -> None:
        self._store = store
        self._threads = threads
        self._waiting: set[Part] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")
        self._appending: Future[None] | None = None
        self._looked = time.monotonic()

    def committed(self, part: Part) -> None:
        """Note that a part has been committed. Takes no time."""
        self._waiting.add(part)
        if self._appending is not None and not self._appending.done():
            return
        now = time.monotonic()
        if len(self._waiting) >= SEGMENT_PARTS:
            parts, self._waiting = self._waiting, set()
            self._appending = self._thread.submit(self._append, parts)
        elif now - self._looked > LOOK_S:
            self._looked = now
            self._appending = self._thread.submit(self._unseal)

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

    def _unseal(self) -> None:
        try:
            unseal(self._store)
        except StoreError as error:
            log.warning("%s; if another run has sealed the catalog, readers may not see the newest parts", error)


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
    """Append all committed parts that the catalog lacks, and seal it: to be called when a run ends.

    A damaged catalog is made anew. A small cache has one too: it tells a record that was deleted from one that a killed
    run has not written.

    Args:
        store: the cache.
        commits: all its parts, as they have just been listed.
        threads: that read and write.

    Returns:
        The number of parts appended.

    Raises:
        StoreError: something cannot be read or written. Readers see the catalog as it was before, or list the records.
    """
    appended = 0
    for _ in range(TRIES):
        if commits.sealed:
            return appended
        if not len(commits):
            unseal(store)
            return appended
        added, settled = _append_and_seal(store, commits, threads)
        appended += added
        if settled:
            return appended
        commits = read_commits(store, threads)
    log.warning("%s: other runs changed its catalog at every try to seal it; the last of them does it", store.uri)
    return appended


def _append_and_seal(store: ObjectStore, commits: CommitTable, threads: int) -> tuple[int, bool]:
    """The number of parts appended, and False if another writer came between, so that the records must be listed anew.

    A seal goes on top of the version that was read before the listing, and of what was appended to it here, alone: so
    it has seen the records of everybody who unsealed the catalog before.
    """
    anew = any(commits.dead_segments)
    catalog = Catalog(commits.catalog.version, (), ()) if anew else commits.catalog
    rows, dropped = (commits.rows, ()) if anew else (commits.tail, commits.dropped)
    longer, added, alone = _append(store, catalog, rows, threads)
    if not alone:
        return added, False
    identities = pc.unique(commits.rows.column("identity_hash")).to_pylist()
    seal = Seal(identities[0], dropped, commits.totals) if added == len(rows) and len(identities) == 1 else None
    indexes = _one_index(store, longer.indexes)
    if seal is None and indexes == longer.indexes:
        return added, True
    return added, create_version(store, Catalog(longer.version + 1, longer.segments, indexes, seal))


def _one_index(store: ObjectStore, indexes: tuple[IndexRef, ...]) -> tuple[IndexRef, ...]:
    """All indexes as one, if together they are small enough: then one read finds any key. Where the version that is to
    name it is not created, `gc` deletes it.
    """
    if len(indexes) < 2 or sum(index.locators for index in indexes) > ONE_INDEX_LOCATORS:
        return indexes
    return (merge_indexes(store, indexes),)


def _append(store: ObjectStore, catalog: Catalog, rows: pa.Table, threads: int) -> tuple[Catalog, int, bool]:
    """Append rows to a version of the catalog, or to a newer one that another writer has created meanwhile.

    Returns:
        The newest version that this made, `catalog` if none; the number of rows appended; whether no other writer has
        created a version meanwhile.
    """
    total = 0
    alone = True
    for first in range(0, rows.num_rows, SEGMENT_PARTS):
        piece, locators = _with_locators(store, rows.slice(first, SEGMENT_PARTS), threads)
        if not piece.num_rows:
            continue
        for _ in range(TRIES):
            longer = _longer(store, catalog, piece, locators)
            if create_version(store, longer):
                catalog = longer
                break
            catalog = read_catalog(store)
            alone = False
        else:
            raise StoreError(store.uri, "other writers were faster at every try to append to its catalog")
        total += piece.num_rows
    return catalog, total, alone


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
