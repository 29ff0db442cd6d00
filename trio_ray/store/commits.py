"""Commit records: the only thing that makes a part count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from trio_ray.errors import ObjectDamaged
from trio_ray.store.dataset import SCHEMA_VERSION
from trio_ray.store.layout import (
    FileKind,
    commit_name,
)
from trio_ray.store.objects import ObjectStore
from trio_ray.store.record import dump_record, load_record

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShardInput:
    """The input a part was made from, and in which version. The fields are those of `source.sample.Shard`.

    `checksum` is the xxh3-128 (hex) of a local file, by which a copy of it is known; None where nobody has made it.
    """

    name: str
    uri: str
    size: int
    etag: str
    rows: tuple[int, int] | None
    checksum: str | None = None

    @property
    def label(self) -> str:
        """What a person knows the shard by."""
        return self.uri if self.rows is None else f"{self.uri} rows {self.rows[0]}..{self.rows[1] - 1}"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a part: name below the cache's root, bytes, xxh3-128 (hex) of the whole."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class FooterRecord:
    """The footer of a part's samples table: its last `size` bytes, and their xxh3-128 (hex)."""

    size: int
    checksum: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Who made a part, and when (ISO 8601, UTC)."""

    run_id: str
    host: str
    started: str
    finished: str
    package_version: str


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """Sums over a part's samples, so that nobody has to read its tables for them.

    Attributes:
        image_tokens: of the stored samples before pruning.
        held_tokens: of these, how many are held, as the mean over all layers.
        member_bytes: stored beside the rows; the tar's headers and padding are not counted.
        device_s: time that the device took for the stored samples, seconds.
        reasons: bad samples by the reason that they are in quarantine for.
    """

    image_tokens: int
    held_tokens: float
    member_bytes: int
    device_s: float
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """A committed part. `last`: the shard ends with it. `stored` and `quarantined` count its samples.

    `files` has `samples` always, `locators` if anything is stored, `tar` if that is more than rows, `quarantine` if
    anything is quarantined. `footer` lets some rows of the samples table be read alone. `replica` names the device that
    computed the part, by its host. `damage` says what was wrong with the shard's file where that is why it ends with
    this part.
    """

    schema_version: int
    identity_hash: str
    shard: ShardInput
    part: int
    attempt: str
    last: bool
    stored: int
    quarantined: int
    statistics: PartStatistics
    files: dict[FileKind, FileRecord]
    footer: FooterRecord
    run: RunRecord
    replica: str
    damage: str | None = None


def create_commit(store: ObjectStore, record: CommitRecord) -> bool:
    """Commit a part: True if this record is the part's one commit, False if another attempt was faster."""
    return store.create(commit_name(record.shard.name, record.part), dump_record(asdict(record)))


def read_commit(store: ObjectStore, shard: str, part: int) -> CommitRecord:
    """One commit record. Raises `ObjectMissing` or `ObjectDamaged`."""
    name = commit_name(shard, part)
    return parse_commit(store.read(name), shard, part, store.uri_of(name))


def parse_commit(data: bytes, shard: str, part: int, uri: str) -> CommitRecord:
    """The commit record of a part in the bytes of its object, or of a copy. Raises `ObjectDamaged`."""
    record = parse_fields(_commit_of, load_record(data, uri), uri)
    if (record.shard.name, record.part) != (shard, part):
        raise ObjectDamaged(
            uri, f"holds the record of part {record.part} of {record.shard.name}; restore it from a copy"
        )
    return record


def delete_commits(store: ObjectStore, shard: str, parts: Iterable[int]) -> None:
    """Take parts of a shard out of the cache; their files are then what `gc` finds.

    The highest part goes last: it tells how the shard was damaged, so that a run that is killed on the way can go on.
    """
    for part in sorted(parts):
        store.delete(commit_name(shard, part))


def parse_fields(build: Callable[[Mapping[str, Any]], T], fields: Mapping[str, Any], uri: str) -> T:
    """What `build` makes of the fields of a record. Raises `ObjectDamaged` where they are not those of its kind."""
    if fields.get("schema_version") != SCHEMA_VERSION:
        message = f"has schema version {fields.get('schema_version')!r}, but this package reads {SCHEMA_VERSION}"
        raise ObjectDamaged(uri, f"{message}; use the version of the package that wrote it")
    try:
        return build(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ObjectDamaged(
            uri, f"has not the fields of its kind of record ({error}); restore it from a copy"
        ) from None


def _commit_of(fields: Mapping[str, Any]) -> CommitRecord:
    files = {kind: FileRecord(**file) for kind, file in fields["files"].items()}
    parts = {
        "shard": shard_input_of(fields["shard"]),
        "statistics": PartStatistics(**fields["statistics"]),
        "files": files,
        "footer": FooterRecord(**fields["footer"]),
        "run": RunRecord(**fields["run"]),
    }
    return CommitRecord(**{**fields, **parts})


def shard_input_of(fields: Mapping[str, Any]) -> ShardInput:
    """The input that a record names, from its fields."""
    rows = fields["rows"]
    return ShardInput(**{**fields, "rows": None if rows is None else _pair(rows)})


def _pair(rows: Iterable[int]) -> tuple[int, int]:
    first, beyond = rows
    return first, beyond
