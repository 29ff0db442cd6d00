"""Where everything lies in a cache: all object names are made and understood here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import xxhash

DATASET = "dataset.json"
COMMITS = "commits/"
CATALOG = "catalog/"
CATALOG_VERSIONS = "catalog/version-"
COMMITS_FOLDERS = tuple(f"{COMMITS}{digit:x}/" for digit in range(16))
"""All prefixes that commit records lie below; they can be listed side by side."""
DATA = "data/"
FAILURES = "failures/"
ASIDE = "aside/"
BASES = "codec/"

FileKind = Literal["samples", "tar", "quarantine", "locators"]

_ENDINGS: dict[FileKind, str] = {
    "samples": ".parquet",
    "tar": ".tar",
    "quarantine": ".quarantine.parquet",
    "locators": ".locators",
}
_KINDS = {ending: kind for kind, ending in _ENDINGS.items()}

_SHARD = r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,199}"
_PART = r"\d{5,9}"
_SHARD_NAME = re.compile(_SHARD)
_ATTEMPT_NAME = re.compile(r"[A-Za-z0-9]{1,64}")
_COMMIT_NAME = re.compile(rf"commits/[0-9a-f]/({_SHARD})/({_PART})\.json")
_ASIDE_NAME = re.compile(rf"aside/({_SHARD})/({_PART})\.json")
_BASIS_NAME = re.compile(r"codec/[0-9a-f]{32}\.safetensors")
_FAILURES_NAME = re.compile(r"failures/[A-Za-z0-9]{1,64}\.json")
_VERSION_NAME = re.compile(r"catalog/version-(\d{9})\.json")
_SEGMENT_NAME = re.compile(r"catalog/segments/[0-9a-f]{32}\.parquet")
_KEY_INDEX_NAME = re.compile(r"catalog/keys/[0-9a-f]{32}\.index")
_DATA_NAME = re.compile(
    rf"data/[0-9a-f]{{2}}/({_SHARD})/({_PART})-([A-Za-z0-9]{{1,64}})"
    r"(\.parquet|\.tar|\.quarantine\.parquet|\.locators)"
)


@dataclass(frozen=True, slots=True)
class DataName:
    """What the name of a data object says."""

    shard: str
    part: int
    attempt: str
    kind: FileKind


def commit_prefix(shard: str) -> str:
    """Where the commit records of one shard lie.

    A hexadecimal digit comes first: S3 lists 1,000 names at a time, and a listing can follow 16 prefixes at once.
    """
    digit = xxhash.xxh3_64_hexdigest(_checked_shard(shard).encode())[0]
    return f"{COMMITS}{digit}/{shard}/"


def commit_name(shard: str, part: int) -> str:
    """The record that makes a part count."""
    return f"{commit_prefix(shard)}{_part_text(part)}.json"


def data_name(shard: str, part: int, attempt: str, kind: FileKind) -> str:
    """A file of one attempt at a part; readers find it through the commit record alone."""
    if not _ATTEMPT_NAME.fullmatch(attempt):
        raise ValueError(f"attempt {attempt!r} must be 1 to 64 letters and digits")
    return f"{data_folder(shard, part)}{_part_text(part)}-{attempt}{_ENDINGS[kind]}"


def data_folder(shard: str, part: int) -> str:
    """Where the files of all attempts at a part lie.

    Two hexadecimal digits come first: S3 limits the requests a second by key prefix, and these spread over 256.
    """
    digits = xxhash.xxh3_64_hexdigest(f"{_checked_shard(shard)}/{_part_text(part)}".encode())[:2]
    return f"{DATA}{digits}/{shard}/"


def catalog_version_name(version: int) -> str:
    """A version of the catalog; the highest one counts."""
    return f"{CATALOG_VERSIONS}{version:09d}.json"


def segment_name(identifier: str) -> str:
    """A segment of the catalog, by 32 hexadecimal digits that nothing else has."""
    return f"{CATALOG}segments/{identifier}.parquet"


def key_index_name(identifier: str) -> str:
    """An index of keys, by 32 hexadecimal digits that nothing else has."""
    return f"{CATALOG}keys/{identifier}.index"


def failures_name(run_id: str) -> str:
    """The shards that a run gave up."""
    name = f"{FAILURES}{run_id}.json"
    if not is_failures_name(name):
        raise ValueError(f"run id {run_id!r} must be 1 to 64 letters and digits")
    return name


def aside_name(shard: str, part: int) -> str:
    """Where the record of a part goes that a repair takes out."""
    return f"{ASIDE}{_checked_shard(shard)}/{_part_text(part)}.json"


def is_aside_name(name: str) -> bool:
    """Whether this is the name of a record that a repair took out."""
    return _ASIDE_NAME.fullmatch(name) is not None


def basis_name(digest: str) -> str:
    """A codec's calibrated basis, by the xxh3-128 of its bytes."""
    name = f"{BASES}{digest}.safetensors"
    if not _BASIS_NAME.fullmatch(name):
        raise ValueError(f"{digest!r} is no xxh3-128 in hexadecimal")
    return name


def is_basis_name(name: str) -> bool:
    """Whether this is the name of a calibrated basis."""
    return _BASIS_NAME.fullmatch(name) is not None


def parse_commit_name(name: str) -> tuple[str, int] | None:
    """Shard and part of a commit record's name; None for any other name."""
    match = _COMMIT_NAME.fullmatch(name)
    if match is None:
        return None
    shard, part = match[1], int(match[2])
    return (shard, part) if commit_name(shard, part) == name else None


def parse_data_name(name: str) -> DataName | None:
    """What a data object's name says; None for any other name."""
    match = _DATA_NAME.fullmatch(name)
    if match is None or _part_text(int(match[2])) != match[2]:
        return None
    shard, part = match[1], int(match[2])
    if not name.startswith(data_folder(shard, part)):
        return None
    return DataName(shard, part, match[3], _KINDS[match[4]])


def parse_catalog_version(name: str) -> int | None:
    """The number of a version of the catalog; None for any other name."""
    match = _VERSION_NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_catalog_name(name: str) -> bool:
    """Whether this is the name of a version, a segment or an index of the catalog."""
    return any(pattern.fullmatch(name) for pattern in (_VERSION_NAME, _SEGMENT_NAME, _KEY_INDEX_NAME))


def is_failures_name(name: str) -> bool:
    """Whether this is the name of what a run gave up."""
    return _FAILURES_NAME.fullmatch(name) is not None


def is_shard_name(name: str) -> bool:
    """Whether a shard may be called so: one safe step of a path on every system."""
    return _SHARD_NAME.fullmatch(name) is not None


def _checked_shard(shard: str) -> str:
    if not is_shard_name(shard):
        raise ValueError(f"shard name {shard!r} must be 1 to 200 of A-Z a-z 0-9 _ . = + - and not begin with a sign")
    return shard


def _part_text(part: int) -> str:
    return f"{part:05d}"
