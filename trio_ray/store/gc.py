"""Removing what dead or beaten attempts left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

from trio_ray.errors import ObjectMissing
from trio_ray.store.catalog import named_objects, read_version, unseal
from trio_ray.store.commit_table import CommitTable, Part, read_commits
from trio_ray.store.commits import read_commit
from trio_ray.store.dataset import NotACacheError, load_dataset
from trio_ray.store.layout import (
    ASIDE,
    BASES,
    CATALOG,
    COMMITS,
    DATA,
    basis_name,
    is_aside_name,
    is_basis_name,
    is_catalog_name,
    parse_catalog_version,
    parse_commit_name,
    parse_data_name,
)
from trio_ray.store.objects import ObjectInfo, ObjectStore

_THREADS = 16


def collect_garbage(store: ObjectStore, older_than_s: float, dry_run: bool) -> list[ObjectInfo]:
    """Remove attempt objects that no commit references, what the catalog no longer names, records that a repair set
    aside, bases that the identity does not name, temporary files, and open multipart uploads.

    Memory grows with the number of parts and of what is removed, not with the number of objects.

    Args:
        older_than_s: nothing younger is touched. It must exceed the longest time between an attempt's first
            uploaded byte and its commit, or a running attempt loses its files; a day is safe. Readers that are open
            for longer may lose the catalog that they were opened with.
        dry_run: only say what would be removed.

    Returns:
        What was (or would be) removed. The size is 0 where the store does not tell, as for multipart uploads.

    Raises:
        NotACacheError: neither a cache nor a basis is there, or commits are and their `dataset.json` is lost; nothing
            was removed, whatever has such names.
        ObjectDamaged: a commit record, the catalog or `dataset.json` cannot be read, so it is not known what it
            references; nothing was removed.
    """
    newest = time.time() - older_than_s
    bases = [info for info in store.list(BASES) if is_basis_name(info.name) and info.modified < newest]
    unfinished = [write for write in store.list_unfinished() if write.modified < newest]
    try:
        basis = load_dataset(store).basis
    except NotACacheError:
        if not bases or any(parse_commit_name(info.name) for info in store.list(COMMITS)):
            raise  # of a cache whose manifest is lost nothing is garbage
        # A job that calibrated and got no further: it began no attempt, so whatever else is here is not its.
        unfinished, orphans = [], bases
    else:
        named = set() if basis is None else {basis_name(basis)}
        commits = read_commits(store, _THREADS)
        if commits.catalog.seal is not None and not commits.sealed and not dry_run:
            unseal(store)  # else readers would go on to see parts whose records are gone
        orphans = [*_attempts(store, commits, newest), *(info for info in bases if info.name not in named)]
        orphans += _of_the_catalog(store, newest)
        orphans += [info for info in store.list(ASIDE) if is_aside_name(info.name) and info.modified < newest]
    if not dry_run:
        store.delete_all(info.name for info in orphans)
        for write in unfinished:
            store.remove_unfinished(write)
    return orphans + [ObjectInfo(write.name, write.size, "", write.modified) for write in unfinished]


def _attempts(store: ObjectStore, commits: CommitTable, newest: float) -> Iterator[ObjectInfo]:
    """Old data objects of attempts that no commit record names."""
    rows = commits.rows
    columns = (rows.column(name).to_pylist() for name in ("shard", "part", "attempt"))
    committed = {(shard, part): attempt for shard, part, attempt in zip(*columns, strict=True)}
    for info in store.list(DATA):
        name = parse_data_name(info.name)
        if name is None or info.modified >= newest or committed.get((name.shard, name.part)) == name.attempt:
            continue
        if _committed_now(store, (name.shard, name.part)) != name.attempt:
            yield info


def _committed_now(store: ObjectStore, part: Part) -> str | None:
    """The attempt that a part is of at this moment: it may have been committed since all records were read."""
    try:
        return read_commit(store, *part).attempt
    except ObjectMissing:
        return None


def _of_the_catalog(store: ObjectStore, newest: float) -> list[ObjectInfo]:
    """Old objects of the catalog that no version names which has been the highest since that time: readers may have
    been opened with any of these.
    """
    objects = [info for info in store.list(CATALOG) if is_catalog_name(info.name)]
    versions = {number: info for info in objects if (number := parse_catalog_version(info.name)) is not None}
    highest_then = max((number for number, info in versions.items() if info.modified < newest), default=0)
    named: set[str] = set()
    for number in versions:
        if number >= highest_then:
            named.update(named_objects(read_version(store, number)))
    return [info for info in objects if info.modified < newest and info.name not in named]
