"""Holding the catalog against the commit records and the parts' locators."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trio_ray.errors import StoreError
from trio_ray.store.catalog import NO_CATALOG, Catalog, named_objects, read_catalog, read_segment
from trio_ray.store.commit_table import Part, record_of
from trio_ray.store.commits import CommitRecord
from trio_ray.store.findings import Finding, FindingKind, kind_of
from trio_ray.store.key_index import read_all
from trio_ray.store.layout import CATALOG, commit_name
from trio_ray.store.locators import digests
from trio_ray.store.objects import ObjectInfo, ObjectStore
from trio_ray.store.verify_part import LocatorSum

_CURE = "delete the folder catalog/, the next run makes it anew"


@dataclass
class CatalogCheck:
    """The catalog's copies by part, as far as they can be read, and what is wrong with it."""

    catalog: Catalog = NO_CATALOG
    copies: dict[Part, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    explained: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

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
        for segment in check.catalog.segments:
            try:
                rows = read_segment(store, segment).to_pylist()
            except StoreError as error:
                check._add(segment.name, str(error), kind_of(error))
                rows = []
            for at, row in enumerate(rows, number):
                check.copies[row["shard"], row["part"]] = at, row
            number += segment.parts
        return check

    def compare(self, info: ObjectInfo, record: CommitRecord) -> Iterator[Finding]:
        """Hold the copy of a record, if there is one of this very object, against it."""
        _, row = self.copies.get((record.shard.name, record.part), (0, None))
        if row is not None and row["record_etag"] == info.etag and record_of(row) != record:
            name = commit_name(record.shard.name, record.part)
            yield Finding(FindingKind.INDEX, CATALOG, None, f"its copy of {name} is not that record; {_CURE}")

    def lost(self, objects: Container[str], shards: Container[str]) -> Iterator[Finding]:
        """Parts of these shards that were committed and are not any more. Without a catalog a record that was deleted
        cannot be told from one that was never written.
        """
        for shard, part in self.copies:
            name = commit_name(shard, part)
            if shard in shards and name not in objects:
                detail = "its record is gone, and the catalog tells that there was one; the next run makes it again"
                yield Finding(FindingKind.MISSING, name, None, detail)

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
                yield Finding(FindingKind.INDEX, index.name, None, f"{error}; {_CURE}")
                continue
            if held != index.locators:
                detail = f"holds {held} samples, the catalog says {index.locators}; {_CURE}"
                yield Finding(FindingKind.INDEX, index.name, None, detail)
            for number in range(index.first, index.beyond):
                part, expected = wanted.get(number, (None, None))
                if part is None or expected is None:
                    continue
                found = LocatorSum(int(counts[number]), int(sums[number]))
                # Of a key that very many samples have, an index leaves some out; then only counts can be compared.
                if found.count > expected.count or (found != expected and not index.left_out):
                    detail = f"its samples of part {part[1]} of {part[0]} are not those of the part; {_CURE}"
                    yield Finding(FindingKind.INDEX, index.name, None, detail)

    def _add(self, name: str, detail: str, kind: FindingKind) -> None:
        self.findings.append(Finding(FindingKind.INDEX if kind is FindingKind.RECORD else kind, name, None, detail))
