"""Setting aside what is damaged or lost in a cache, so that the next run of its job makes exactly that again.

A part is taken out by its commit record alone, which goes below `aside/` as it is. Its files stay until `gc` finds that
no record names them, so a repair can be undone by hand until then: copy the record back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from trio_ray.errors import ObjectMissing
from trio_ray.store.catalog import unseal
from trio_ray.store.commit_table import Part
from trio_ray.store.findings import Finding, FindingKind
from trio_ray.store.layout import (
    CATALOG,
    aside_name,
    commit_name,
    is_failures_name,
    parse_catalog_version,
    parse_commit_name,
    parse_data_name,
)
from trio_ray.store.objects import ObjectStore

_OF_A_PART = {
    FindingKind.RECORD,
    FindingKind.IDENTITY,
    FindingKind.MISSING,
    FindingKind.SIZE,
    FindingKind.CHECKSUM,
    FindingKind.TABLE,
    FindingKind.MEMBER,
    FindingKind.DUPLICATE,
}
"""What is cured by making the part again. A gap needs no cure: the next run fills it."""


@dataclass
class Repair:
    """What was done.

    Attributes:
        parts: that were set aside, by shard and number.
        deleted: objects that are made anew from others: the catalog, and failure records.
        left: damage that nothing here can cure.
    """

    parts: list[Part] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    left: list[Finding] = field(default_factory=list)


def repair(store: ObjectStore, findings: Iterable[Finding]) -> Repair:
    """Set aside the parts that these findings are about. Run it while no job writes to the cache.

    Args:
        store: of the cache.
        findings: of `verify`.

    Raises:
        StoreError: the store failed; what was set aside until then stays so, and another call goes on.
    """
    done = Repair()
    parts: dict[Part, None] = {}
    catalog = False
    for finding in findings:
        if not finding.is_damage or finding.kind is FindingKind.GAP:
            continue
        part = _part_of(finding.object)
        if part is not None and finding.kind in _OF_A_PART:
            parts[part] = None
        elif finding.object.startswith(CATALOG) and finding.kind is not FindingKind.UNREADABLE:
            catalog = True
        elif is_failures_name(finding.object) and finding.kind in _OF_A_PART:
            store.delete(finding.object)
            done.deleted.append(finding.object)
        else:
            done.left.append(finding)
    if catalog or parts:  # it would tell of parts that are gone; the next run makes it anew
        unseal(store)
        # From the oldest version on: while there is one, the highest has no seal.
        names = [info.name for info in store.list(CATALOG)]
        names.sort(key=lambda name: (parse_catalog_version(name) is None, name))
        store.delete_all(names)
        done.deleted += names
    for part in parts:
        if _set_aside(store, part):
            done.parts.append(part)
    return done


def _part_of(name: str) -> Part | None:
    """The part that an object belongs to."""
    if (data := parse_data_name(name)) is not None:
        return data.shard, data.part
    return parse_commit_name(name)


def _set_aside(store: ObjectStore, part: Part) -> bool:
    """Move a part's record; False if there is none any more."""
    name = commit_name(*part)
    try:
        record = store.read(name)
    except ObjectMissing:
        return False
    store.put(aside_name(*part), record)
    store.delete(name)
    return True
