"""What a check of a cache can find."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trio_ray.errors import ObjectDamaged, ObjectMissing, StoreError


class FindingKind(StrEnum):
    """What can be wrong with a cache. All of it is damage, but for `ORPHAN`, which harms nobody, and `GIVEN_UP`."""

    DATASET = "dataset"  # dataset.json is absent or not as written
    RECORD = "record"  # a commit or failure record is not as written, or contradicts its place
    IDENTITY = "identity"  # made with other settings than the cache's
    MISSING = "missing"  # a committed file is not there
    SIZE = "size"  # a committed file has another length
    CHECKSUM = "checksum"  # a committed file has other bytes
    TABLE = "table"  # a Parquet file is not one, or has other columns or rows than it should
    MEMBER = "member"  # a sample's bytes in the tar are not what its row says
    INDEX = "index"  # locators, or the catalog, do not say what the tables and records say
    GAP = "gap"  # a part is missing between committed ones
    DUPLICATE = "duplicate"  # a key or index is twice in one shard
    FOREIGN = "foreign"  # an object that nothing explains
    GIVEN_UP = "given up"  # a shard that the job gave up, whose samples are not in the cache
    ORPHAN = "orphan"  # a file of an attempt that was never committed
    UNREADABLE = "unreadable"  # the store refused or failed


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be: in which object, which sample of it if known, in what way."""

    kind: FindingKind
    object: str
    key: str | None
    detail: str

    @property
    def is_damage(self) -> bool:
        """An orphan is what a killed or beaten attempt leaves; it harms no reader. Of a shard that was given up
        something is missing, but what is there is sound. Everything else is damage.
        """
        return self.kind not in (FindingKind.ORPHAN, FindingKind.GIVEN_UP)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    `bytes` are those of committed files; `incomplete` names shards whose end is not committed.
    """

    findings: list[Finding]
    parts: int
    samples: int
    quarantined: int
    bytes: int
    incomplete: list[str]

    @property
    def ok(self) -> bool:
        """True if nothing is damaged, and no shard was given up."""
        return all(finding.kind is FindingKind.ORPHAN for finding in self.findings)


def kind_of(error: StoreError) -> FindingKind:
    """The finding that an error while reading a record or file amounts to."""
    if isinstance(error, ObjectMissing):
        return FindingKind.MISSING
    if isinstance(error, ObjectDamaged):
        return FindingKind.RECORD
    return FindingKind.UNREADABLE
