"""Holding the catalog against the commit records and the parts' locators."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trio_ray.errors import StoreError
from trio_ray.store.catalog import NO_CATALOG, Catalog, named_objects, read_catalog, read_segment
from trio_ray.store.commit_table import Part, record_of, table_of
from trio_ray.store.commits import CommitRecord
from trio_ray.store.findings import Finding, FindingKind, kind_of
from trio_ray.store.key_index import read_all
from trio_ray.store.layout import CATALOG, commit_name
from trio_ray.store.locators import digests
from trio_ray.store.objects import ObjectInfo, ObjectStore
from trio_ray.store.totals import Totals, add_up
from trio_ray.store.verify_part import LocatorSum

_CURE = "delete the folder catalog/, the next run makes it anew"


@dataclass
class CatalogCheck:
    """The catalog's copies by part, as far as they can be read, and what is wrong with it.

    Attributes:
        catalog: its newest version.
        copies: by part, its number and its row.
        sealed: rows of the parts that its seal counts.
        explained: names of the objects that belong to it.
        findings: about the catalog alone.
        unseen: parts whose record `compare` has been given, and which the seal does not count.
    """

    catalog: Catalog = NO_CATALOG
    copies: dict[Part, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    sealed: dict[Part, dict[str, Any]] = field(default_factory=dict)
    explained: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    unseen: list[Part] = field(default_factory=list)

    @classmethod
    def of(cls, store: ObjectStore) -> CatalogCheck:
        """Read the newest version and its segments."""
        check = cls()
        try:
            check.catalog = read_catalog(store)
        except StoreError as error:
            check._add(CATALOG, str(error), kind_of(error))
            return check
        if check.catalog.version:
            check.explained.update(named_objects(check.catalog))
        number = 0
        dropped = set(check.catalog.seal.dropped if check.catalog.seal else range(check.catalog.parts))
        for segment in check.catalog.segments:
            try:
                rows = read_segment(store, segment).to_pylist()
            except StoreError as error:
                check._add(segment.name, str(error), kind_of(error))
                rows = []
            for at, row in enumerate(rows, number):
                check.copies[row["shard"], row["part"]] = at, row
                if at not in dropped:
                    check.sealed[row["shard"], row["part"]] = row
            number += segment.parts
        return check

    def compare(self, info: ObjectInfo, record: CommitRecord) -> Iterator[Finding]:
        """Hold the copy of a record, if there is one of this very object, against it. For several threads."""
        part = record.shard.name, record.part
        _, row = self.copies.get(part, (0, None))
        if row is not None and row["record_etag"] == info.etag and record_of(row) != record:
            yield self._index(CATALOG, f"its copy of {commit_name(*part)} is not that record; {_CURE}")
        seen = self.sealed.get(part)
        if seen is None or (seen["record_etag"] != info.etag and record_of(seen) != record):
            self.unseen.append(part)

    def lost(self, objects: Container[str], shards: Container[str]) -> Iterator[Finding]:
        """Parts of these shards that were committed and are not any more, though no run has ended since that took them
        out. Without a catalog, a record that was deleted cannot be told from one that was never written.
        """
        gone = set(self.catalog.seal.dropped if self.catalog.seal else ())
        for (shard, part), (number, _) in self.copies.items():
            name = commit_name(shard, part)
            if shard in shards and name not in objects and number not in gone:
                detail = "its record is gone, and the catalog tells that there was one; the next run makes it again"
                yield Finding(FindingKind.MISSING, name, None, detail)

    def compare_seal(self, store: ObjectStore) -> Iterator[Finding]:
        """What readers of a sealed catalog do not see as it is. To be called when all records have been compared."""
        seal = self.catalog.seal
        if seal is None or self.findings:
            return
        wrong = not _same_sums(add_up(table_of([self.sealed[part] for part in sorted(self.sealed)])), seal.totals)
        if not (self.unseen or wrong) or _version_now(store) != self.catalog.version:
            return  # a job that began meanwhile has unsealed it
        for part in sorted(self.unseen):
            detail = f"is sealed, and {commit_name(*part)} is not in it, so that readers do not see this part"
            yield self._index(CATALOG, f"{detail}; {_CURE}")
        if wrong:
            yield self._index(CATALOG, f"its sums are not those of its records; {_CURE}")

    def compare_indexes(self, store: ObjectStore, located: Mapping[Part, LocatorSum]) -> Iterator[Finding]:
        """Read all indexes, and hold what they have of the parts that were checked against the parts' locators."""
        wanted = {self.copies[part][0]: (part, sums) for part, sums in located.items() if part in self.copies}
        counts = np.zeros(self.catalog.parts, np.int64)
        sums = np.zeros(self.catalog.parts, np.uint64)
        for index in self.catalog.indexes:
            held = 0
            try:
                for locators in read_all(store, index):
                    held += len(locators)
                    outside = (locators["commit"] < index.first) | (locators["commit"] >= index.beyond)
                    if outside.any():
                        raise StoreError(store.uri_of(index.name), "holds samples of parts that it does not cover")
                    plain = locators.copy()
                    plain["commit"] = 0
                    np.add.at(counts, locators["commit"], 1)
                    np.add.at(sums, locators["commit"], digests(plain))
            except StoreError as error:
                yield self._index(index.name, f"{error}; {_CURE}")
                continue
            if held != index.locators:
                detail = f"holds {held} samples, the catalog says {index.locators}; {_CURE}"
                yield self._index(index.name, detail)
            for number in range(index.first, index.beyond):
                part, expected = wanted.get(number, (None, None))
                if part is None or expected is None:
                    continue
                found = LocatorSum(int(counts[number]), int(sums[number]))
                # Of a key that very many samples have, an index leaves some out; then only counts can be compared.
                if found.count > expected.count or (found != expected and not index.left_out):
                    detail = f"its samples of part {part[1]} of {part[0]} are not those of the part; {_CURE}"
                    yield self._index(index.name, detail)

    @staticmethod
    def _index(name: str, detail: str) -> Finding:
        return Finding(FindingKind.INDEX, name, None, detail)

    def _add(self, name: str, detail: str, kind: FindingKind) -> None:
        self.findings.append(Finding(FindingKind.INDEX if kind is FindingKind.RECORD else kind, name, None, detail))


def _same_sums(found: Totals, told: Totals) -> bool:
    """Whether sums are the same; those of fractions depend a little on the order in which they were added."""
    close = all(
        math.isclose(getattr(found, name), getattr(told, name), rel_tol=1e-9) for name in ("held_tokens", "device_s")
    )
    return close and replace(found, held_tokens=told.held_tokens, device_s=told.device_s) == told


def _version_now(store: ObjectStore) -> int | None:
    """The number of the newest version; None where it cannot be read."""
    try:
        return read_catalog(store).version
    except StoreError:
        return None
