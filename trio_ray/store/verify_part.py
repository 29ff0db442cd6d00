"""Holding the files of one shard's parts against their commit records and rows."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from trio_ray.errors import ObjectDamaged, StoreError
from trio_ray.store.commit_table import Part
from trio_ray.store.commits import CommitRecord, FileRecord, FooterRecord
from trio_ray.store.findings import Finding, FindingKind, kind_of
from trio_ray.store.layout import DataName, FileKind, commit_name, parse_data_name
from trio_ray.store.locators import digests, locators_of, read_locators
from trio_ray.store.objects import ObjectInfo, ObjectStore
from trio_ray.store.row_groups import parse_footer
from trio_ray.store.tables import (
    IDENTITY_KEY,
    MEMBER_KINDS,
    PLACE_COLUMNS,
    QUARANTINE,
    SAMPLES,
    VERSION_KEY,
    MemberKind,
    place_columns,
)
from trio_ray.store.tar_members import END, MAX_HEADER, header_fault, padding

_CHUNK = 4 << 20
_TABLE_COLUMNS: dict[FileKind, list[str]] = {
    "samples": ["key", "index", "image_tokens", "retention", "prefill_ms", *PLACE_COLUMNS],
    "quarantine": ["key", "reason"],
}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of the tar as its row describes it."""

    key: str
    kind: MemberKind
    object: str
    offset: int
    length: int
    checksum: str


@dataclass(frozen=True, slots=True)
class LocatorSum:
    """How many locators there are of a part, and the sum of their hashes, whatever the part's number."""

    count: int
    digest: int

    @classmethod
    def of(cls, locators: np.ndarray) -> LocatorSum:
        """Of a part's locators, (n,)."""
        plain = locators.copy()
        plain["commit"] = 0
        return cls(len(plain), int(digests(plain).sum(dtype=np.uint64)))


@dataclass(slots=True)
class ShardCheck:
    """The running account of one shard, over all its parts."""

    findings: list[Finding] = field(default_factory=list)
    explained: set[str] = field(default_factory=set)
    samples: int = 0
    quarantined: int = 0
    bytes: int = 0
    complete: bool = False
    keys: set[str] = field(default_factory=set)
    indices: set[int] = field(default_factory=set)
    located: dict[Part, LocatorSum] = field(default_factory=dict)

    def add(self, kind: FindingKind, name: str, detail: str, key: str | None = None) -> None:
        """Note a finding."""
        self.findings.append(Finding(kind, name, key, detail))


def check_part(store: ObjectStore, record: CommitRecord, objects: Mapping[str, ObjectInfo], check: ShardCheck) -> None:
    """Check every file of a committed part, in one pass over its bytes. Never raises `StoreError`."""
    name = commit_name(record.shard.name, record.part)
    wanted = {"samples", *["locators"] * bool(record.stored), *["quarantine"] * bool(record.quarantined)}
    if set(record.files) - {"tar"} != wanted:
        check.add(FindingKind.RECORD, name, f"lists files {sorted(record.files)}, should have {sorted(wanted)}")
    for kind, file in record.files.items():
        check.explained.add(file.name)
        if parse_data_name(file.name) != DataName(record.shard.name, record.part, record.attempt, kind):
            check.add(FindingKind.RECORD, name, f"lists {file.name!r} as its {kind} file, which is not its name")
    intact = {kind: file for kind, file in record.files.items() if _has_size(store, file, objects, check)}
    check.bytes += sum(file.size for file in intact.values())
    rows = _checked_table(store, record, "samples", intact, check)
    bad = _checked_table(store, record, "quarantine", intact, check)
    check.samples += len(rows or ())
    check.quarantined += len(bad or ())
    if rows is not None and (bad is not None or not record.quarantined):
        _check_statistics(record, rows, bad or [], check)
    _check_unique(rows or [], record.files.get("samples"), check)
    members = None if rows is None else _members(rows, record.files["samples"], check)
    if members is not None and bool(members) != ("tar" in record.files):
        listed = "lists" if "tar" in record.files else "lists no"
        check.add(FindingKind.RECORD, name, f"{listed} tar, and its rows place {len(members)} members")
    if "tar" in intact:
        _check_tar(store, intact["tar"], members, check)
    if rows and "locators" in intact:
        _check_locators(store, record, rows, intact["locators"], check)


def _check_statistics(record: CommitRecord, rows: list[Row], bad: list[Row], check: ShardCheck) -> None:
    """The record's sums must be those of the tables; columns of single precision are rounded.

    Of the members' bytes more is known: each row is held against its own member.
    """
    said = record.statistics
    whole = {
        "image_tokens": (said.image_tokens, sum(row["image_tokens"] for row in rows)),
        "reasons": (said.reasons, dict(Counter(row["reason"] for row in bad))),
    }
    rounded = {
        "held_tokens": (said.held_tokens, sum(row["retention"] * row["image_tokens"] for row in rows)),
        "device_s": (said.device_s, sum(row["prefill_ms"] for row in rows) / 1e3),
    }
    wrong = [name for name, (stored, found) in whole.items() if stored != found]
    wrong += [name for name, (stored, found) in rounded.items() if not math.isclose(stored, found, rel_tol=1e-4)]
    if wrong:
        name = commit_name(record.shard.name, record.part)
        check.add(FindingKind.RECORD, name, f"its sums are not those of its tables: {', '.join(wrong)}")


def _has_size(store: ObjectStore, file: FileRecord, objects: Mapping[str, ObjectInfo], check: ShardCheck) -> bool:
    try:
        info = objects.get(file.name) or store.stat(file.name)
    except StoreError as error:
        check.add(kind_of(error), file.name, str(error))
        return False
    if info.size != file.size:
        check.add(FindingKind.SIZE, file.name, f"has {info.size} bytes, was committed with {file.size}")
        return False
    return True


def _checked_table(
    store: ObjectStore,
    record: CommitRecord,
    kind: FileKind,
    files: Mapping[FileKind, FileRecord],
    check: ShardCheck,
) -> list[Row] | None:
    """The rows of one of the part's tables; None where it is not there or cannot be trusted."""
    file = files.get(kind)
    if file is None:
        return None
    try:
        data = store.read(file.name)
    except StoreError as error:
        check.add(kind_of(error), file.name, str(error))
        return None
    if xxhash.xxh3_128_hexdigest(data) != file.checksum:
        check.add(FindingKind.CHECKSUM, file.name, "its bytes are not the ones that were committed")
        return None
    schema, count = (SAMPLES, record.stored) if kind == "samples" else (QUARANTINE, record.quarantined)
    try:
        rows, fault = _read_table(data, schema, kind, record)
    except (pa.ArrowException, OSError, ValueError) as error:
        rows, fault = None, f"cannot be read as Parquet: {error}"
    if fault is None and kind == "samples":
        fault = _footer_fault(data, record.footer)
    if fault is None and rows is not None and len(rows) != count:
        fault = f"has {len(rows)} rows, its commit record says {count}"
    if fault is not None:
        check.add(FindingKind.TABLE, file.name, fault)
    return rows


def _footer_fault(data: bytes, footer: FooterRecord) -> str | None:
    """What is wrong with a samples table's footer, or with the row groups by what it says of them."""
    end = data[-footer.size :]
    if xxhash.xxh3_128_hexdigest(end) != footer.checksum:
        return "its footer is not the one that its commit record describes"
    try:
        found = parse_footer(end, "")
    except ObjectDamaged as error:
        return str(error)
    groups = [data[first:beyond] for first, beyond in pairwise(found.first_byte.tolist())]
    if tuple(map(xxhash.xxh3_128_hexdigest, groups)) != found.checksums:
        return "its row groups are not those that its footer describes"
    return None


def _check_locators(
    store: ObjectStore, record: CommitRecord, rows: list[Row], file: FileRecord, check: ShardCheck
) -> None:
    try:
        locators = read_locators(store, file.name, file.checksum, len(rows))
    except StoreError as error:
        kind = FindingKind.CHECKSUM if isinstance(error, ObjectDamaged) else kind_of(error)
        check.add(kind, file.name, str(error))
        return
    try:
        expected = locators_of(rows)
    except (ValueError, TypeError, OverflowError):
        return  # the rows' places are no places, which is a finding of its own
    if locators.tobytes() != expected.tobytes():
        check.add(FindingKind.INDEX, file.name, "its locators are not those of the samples table")
    check.located[record.shard.name, record.part] = LocatorSum.of(locators)


def _read_table(
    data: bytes, schema: pa.Schema, kind: FileKind, record: CommitRecord
) -> tuple[list[Row] | None, str | None]:
    with pq.ParquetFile(io.BytesIO(data)) as file:
        found = file.schema_arrow
        if not found.equals(schema, check_metadata=False):
            return None, f"has not the columns of version {record.schema_version}: {found.to_string()}"
        stamps = found.metadata or {}
        wanted = {IDENTITY_KEY: record.identity_hash, VERSION_KEY: str(record.schema_version)}
        faults = [
            f"says {key.decode()} {stamps.get(key)!r}, its commit record {value!r}"
            for key, value in wanted.items()
            if stamps.get(key) != value.encode()
        ]
        return file.read(_TABLE_COLUMNS[kind]).to_pylist(), faults[0] if faults else None


def _check_unique(rows: list[Row], file: FileRecord | None, check: ShardCheck) -> None:
    for row in rows:
        for label, value, seen in (("key", row["key"], check.keys), ("index", row["index"], check.indices)):
            if value in seen and file is not None:
                detail = f"{label} {value!r} is a second time in this shard"
                check.add(FindingKind.DUPLICATE, file.name, detail, row["key"])
        check.keys.add(row["key"])
        check.indices.add(row["index"])


def _members(rows: list[Row], file: FileRecord, check: ShardCheck) -> list[_Member]:
    """What the rows say is in the tar, in its order. A part stores one kind of member for all of its rows, or none."""
    members = [_Member(row["key"], kind, *place) for row in rows for kind, place in _places(row)]
    broken = [member for member in members if None in (member.offset, member.length, member.checksum)]
    if broken:
        check.add(FindingKind.TABLE, file.name, "does not say where all of the member lies", broken[0].key)
        return []
    kinds = {member.kind for member in members}
    if len(kinds) > 1 or len(members) not in (0, len(rows)):
        check.add(FindingKind.MEMBER, file.name, f"{len(rows)} rows place {len(members)} members of {sorted(kinds)}")
    return sorted(members, key=lambda member: member.offset)


def _places(row: Row) -> Iterator[tuple[MemberKind, tuple[str, int, int, str]]]:
    for kind in MEMBER_KINDS:
        where, offset, length, checksum = (row[column] for column in place_columns(kind))
        if where is not None:
            yield kind, (where, offset, length, checksum)


def _check_tar(store: ObjectStore, file: FileRecord, members: list[_Member] | None, check: ShardCheck) -> None:
    try:
        with store.open(file.name) as stream:
            tar = _HashedStream(stream)
            if members is not None:
                _check_members(tar, file, members, check)
            tar.skip_rest()
    except StoreError as error:
        check.add(kind_of(error), file.name, str(error))
        return
    if tar.checksum != file.checksum:
        check.add(FindingKind.CHECKSUM, file.name, "its bytes are not the ones that were committed")


def _check_members(tar: _HashedStream, file: FileRecord, members: list[_Member], check: ShardCheck) -> None:
    """Walk the tar along the rows; stops where it cannot know any more where the next member begins."""
    for member in members:
        key, length = member.key, member.length
        gap = member.offset - tar.position
        if member.object != file.name:
            return check.add(FindingKind.MEMBER, file.name, f"its row points to {member.object!r}", key)
        if not 0 < gap <= MAX_HEADER or not 0 <= length <= file.size - member.offset:
            detail = f"its row points to bytes {member.offset} + {length}, where no member of its own can be"
            return check.add(FindingKind.MEMBER, file.name, detail, key)
        fault = header_fault(tar.read(gap), key, member.kind, length)
        if fault is not None:
            check.add(FindingKind.MEMBER, file.name, fault, key)
        if tar.hash_of(length) != member.checksum:
            check.add(FindingKind.MEMBER, file.name, "the sample's bytes do not fit its checksum", key)
        if any(tar.read(padding(length))):
            check.add(FindingKind.MEMBER, file.name, "the padding behind the sample is not zero", key)
    rest = tar.read(MAX_HEADER)
    if len(rest) < len(END) or any(rest):
        check.add(FindingKind.MEMBER, file.name, f"bytes from {tar.position - len(rest)} on belong to no row")
    return None


class _HashedStream:
    """Reads a file front to back, hashing (xxh3-128) whatever goes by."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = xxhash.xxh3_128()
        self.position = 0

    @property
    def checksum(self) -> str:
        """xxh3-128 (hex) of everything read so far."""
        return self._hash.hexdigest()

    def read(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end."""
        data = self._stream.read(length)
        self._hash.update(data)
        self.position += len(data)
        return data

    def hash_of(self, length: int) -> str:
        """xxh3-128 (hex) of the next `length` bytes alone."""
        own = xxhash.xxh3_128()
        while length > 0 and (data := self.read(min(length, _CHUNK))):
            own.update(data)
            length -= len(data)
        return own.hexdigest()

    def skip_rest(self) -> None:
        """Read up to the end, for the whole checksum."""
        while self.read(_CHUNK):
            pass
