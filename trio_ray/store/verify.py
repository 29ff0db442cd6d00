"""Holding a whole cache against its own records: every byte is read once, nothing found is left unnamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import xxhash

from trio_ray.errors import IdentityMismatch, ObjectDamaged, ObjectMissing, StoreError
from trio_ray.store.bases import read_basis
from trio_ray.store.commits import CommitRecord, read_commit
from trio_ray.store.dataset import Dataset, NotACacheError, load_dataset
from trio_ray.store.failures import read_failures_of
from trio_ray.store.findings import Finding, FindingKind, VerifyReport, kind_of
from trio_ray.store.layout import (
    DATASET,
    basis_name,
    commit_name,
    is_aside_name,
    is_catalog_name,
    is_failures_name,
    parse_catalog_version,
    parse_commit_name,
    parse_data_name,
)
from trio_ray.store.objects import ObjectInfo, ObjectStore
from trio_ray.store.verify_catalog import CatalogCheck
from trio_ray.store.verify_part import ShardCheck, check_part

Objects = Mapping[str, ObjectInfo]


@dataclass(frozen=True, slots=True)
class Extent:
    """Which shards are read: of `of` shares of them the one of number `share` (from 1), and of that a part `sample`.

    A shard is in the same share, and drawn or not, whenever it is asked; all shares together are the cache.
    """

    share: int = 1
    of: int = 1
    sample: float = 1.0

    def __contains__(self, shard: object) -> bool:
        number = xxhash.xxh3_64_intdigest(str(shard).encode())
        return number % self.of == self.share - 1 and number // self.of % 2**32 < self.sample * 2**32


def verify(store: ObjectStore, threads: int, extent: Extent | None = None) -> VerifyReport:
    """Read everything in the cache and compare it with its records; shards are checked in `threads` at once.

    Memory is bounded by a part's Parquet tables and a few MiB of tar a thread, a shard's keys, and the names
    of all objects. Safe beside a running job: what it has not committed yet shows up as orphans.

    Args:
        store: of the cache.
        threads: that check shards.
        extent: read these shards alone. What the listing shows is looked at for all.

    Raises:
        StoreError: the cache cannot be listed at all. Whatever is wrong inside it is a finding instead.
    """
    extent = extent or Extent()
    findings: list[Finding] = []
    catalog = CatalogCheck.of(store)  # before the listing, which then shows every record that was copied
    objects = {info.name: info for info in store.list()}
    dataset = _check_dataset(store, findings)
    findings += catalog.findings
    parts: dict[str, list[int]] = {}
    explained = {DATASET} | catalog.explained
    for name in objects:
        if parsed := parse_commit_name(name):
            parts.setdefault(parsed[0], []).append(parsed[1])
        elif (named := parse_data_name(name)) and named.shard not in extent:
            explained.add(name)  # whether a record lists it is for who reads the record
    shards = sorted(shard for shard in parts if shard in extent)
    findings += catalog.lost(objects, extent)
    explained |= {commit_name(shard, part) for shard in parts if shard not in extent for part in parts[shard]}
    with ThreadPoolExecutor(threads) as pool:
        checks = list(
            pool.map(lambda shard: _check_shard(store, dataset, shard, parts[shard], objects, catalog), shards)
        )
    findings += catalog.compare_indexes(store, {part: sums for check in checks for part, sums in check.located.items()})
    findings += catalog.compare_seal(store)
    explained = explained.union(*(check.explained for check in checks))
    findings += _check_basis(store, dataset, explained)
    for check in checks:
        findings += check.findings
    findings += _check_failures(store, dataset, objects)
    findings += _unexplained(objects, explained)
    return VerifyReport(
        findings=findings,
        parts=sum(len(parts[shard]) for shard in shards),
        samples=sum(check.samples for check in checks),
        quarantined=sum(check.quarantined for check in checks),
        bytes=sum(check.bytes for check in checks),
        incomplete=[shard for shard, check in zip(shards, checks, strict=True) if not check.complete],
    )


def _check_dataset(store: ObjectStore, findings: list[Finding]) -> Dataset | None:
    try:
        return load_dataset(store)
    except (NotACacheError, ObjectDamaged, IdentityMismatch) as error:
        findings.append(Finding(FindingKind.DATASET, DATASET, None, str(error)))
    except StoreError as error:
        findings.append(Finding(kind_of(error), DATASET, None, str(error)))
    return None


def _check_basis(store: ObjectStore, dataset: Dataset | None, explained: set[str]) -> Iterator[Finding]:
    """The basis that the identity's codec names, if it names one."""
    digest = dataset.basis if dataset else None
    if digest is None:
        return
    name = basis_name(digest)
    explained.add(name)
    try:
        read_basis(store, digest)
    except ObjectDamaged as error:
        yield Finding(FindingKind.CHECKSUM, name, None, str(error))
    except StoreError as error:
        yield Finding(kind_of(error), name, None, str(error))


def _check_shard(
    store: ObjectStore,
    dataset: Dataset | None,
    shard: str,
    parts: list[int],
    objects: Objects,
    catalog: CatalogCheck,
) -> ShardCheck:
    check = ShardCheck()
    expected = 0
    for part in sorted(parts):
        name = commit_name(shard, part)
        check.explained.add(name)
        if part > expected:
            check.add(FindingKind.GAP, name, f"is committed, but parts {expected} to {part - 1} before it are not")
        expected = part + 1
        try:
            record = read_commit(store, shard, part)
        except StoreError as error:
            check.add(kind_of(error), name, str(error))
            check.explained.update(_files_of_part(objects, shard, part))  # not orphans: we cannot know any more
            check.complete = False
            continue
        check.findings += catalog.compare(objects[name], record)
        _check_record(check, dataset, record, is_highest=part == max(parts))
        check_part(store, record, objects, check)
    check.keys.clear()  # a cache has very many shards
    check.indices.clear()
    return check


def _check_record(check: ShardCheck, dataset: Dataset | None, record: CommitRecord, is_highest: bool) -> None:
    name = commit_name(record.shard.name, record.part)
    if dataset is not None and record.identity_hash != dataset.identity_hash:
        check.add(FindingKind.IDENTITY, name, f"made with identity {record.identity_hash}, the cache has another")
    if record.last and not is_highest:
        check.add(FindingKind.GAP, name, "says that its shard ends here, but later parts are committed")
    check.complete = record.last


def _files_of_part(objects: Objects, shard: str, part: int) -> Iterator[str]:
    for name in objects:
        parsed = parse_data_name(name)
        if parsed is not None and (parsed.shard, parsed.part) == (shard, part):
            yield name


def _check_failures(store: ObjectStore, dataset: Dataset | None, objects: Objects) -> Iterator[Finding]:
    for name in filter(is_failures_name, objects):
        try:
            failures = read_failures_of(store, name)
        except ObjectMissing:
            continue  # a running job has just taken them over
        except StoreError as error:
            yield Finding(kind_of(error), name, None, str(error))
            continue
        for failure in failures:
            if dataset is not None and failure.identity_hash != dataset.identity_hash:
                yield Finding(FindingKind.IDENTITY, name, None, "made with another identity than the cache has")
            tried = f"{failure.shard.label} after {failure.attempts} attempts: {failure.error}"
            yield Finding(FindingKind.GIVEN_UP, name, None, f"{tried}; the next run tries it again")


def _unexplained(objects: Objects, explained: set[str]) -> Iterator[Finding]:
    for name in objects:
        # Older versions of the catalog are history that readers may have been opened with, and nothing that went wrong.
        if name in explained or is_failures_name(name) or parse_catalog_version(name) is not None:
            continue
        if is_aside_name(name):
            detail = "the record of a part that a repair set aside; gc removes it, and the part's files"
            yield Finding(FindingKind.ORPHAN, name, None, detail)
        elif is_catalog_name(name):
            detail = "the catalog no longer names it; gc removes it"
            yield Finding(FindingKind.ORPHAN, name, None, detail)
        elif parse_data_name(name):
            detail = "no commit record lists it: left by a killed or beaten attempt; gc removes it"
            yield Finding(FindingKind.ORPHAN, name, None, detail)
        else:
            yield Finding(FindingKind.FOREIGN, name, None, "is no part of a cache; move it elsewhere")
