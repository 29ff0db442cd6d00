"""What a source yields: samples, or the reason why one could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, Literal, Protocol


class Reason(StrEnum):
    """Why a sample is in quarantine. The value is what the quarantine table stores."""

    IMAGE_MISSING = "image_missing"
    IMAGE_EMPTY = "image_empty"
    IMAGE_CORRUPT = "image_corrupt"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_OUTSIDE = "image_outside"
    TEXT_ONLY = "text_only"
    TEXT_MISSING = "text_missing"
    TEXT_EMPTY = "text_empty"
    TEXT_NOT_UTF8 = "text_not_utf8"
    TEXT_MALFORMED = "text_malformed"
    IMAGE_COUNT = "image_count"
    MEMBER_STRAY = "member_stray"
    MEMBERS_UNCLEAR = "members_unclear"
    MEMBERS_SCATTERED = "members_scattered"
    TEMPLATE_FAILED = "template_failed"
    PROMPT_TOO_LONG = "prompt_too_long"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_FINITE = "not_finite"
    DUPLICATE_KEY = "duplicate_key"
    SHARD_TRUNCATED = "shard_truncated"
    SHARD_UNREADABLE = "shard_unreadable"


SHARD_REASONS = (Reason.SHARD_TRUNCATED, Reason.SHARD_UNREADABLE)
"""These stand for the rest of a shard, not for one sample."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the prompt. `text` may hold `<image>` markers where the images go."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with its images, as it was read and before anything was decoded.

    `key` is unique within its shard, `index` is its position there (bad samples count too), `turns` ends with
    the user's turn that is to be answered, `answer` is the true answer where the corpus has one.
    """

    key: str
    index: int
    images: tuple[bytes, ...]
    turns: tuple[Turn, ...]
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that goes to quarantine instead of the cache.

    `silent`: the user chose to pass over such samples (`source.text_only: skip`); it takes its place in the order
    of the shard, and is neither counted nor written to the quarantine table.
    """

    key: str
    index: int
    reason: Reason
    detail: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of input work: a file, or a run of rows of one.

    `name` is unique in a cache and safe as a folder name. `rows` is the half-open range of rows of a file
    that was split, None for a whole file. `offset` is the byte at which the first of them starts, where rows
    are text: without it each run of a large file would have to read all of the file before it. `checksum` is the
    xxh3-128 of a local file, once somebody has made it.
    """

    name: str
    uri: str
    size: int
    etag: str
    format: Literal["webdataset", "parquet", "jsonl", "json"]
    rows: tuple[int, int] | None = None
    offset: int = 0
    checksum: str | None = None


class Opener(Protocol):
    """How a source reads files, wherever they are. Raises `StoreError` (never a bare OSError) on failure."""

    def open(self, uri: str, etag: str | None = None) -> BinaryIO:
        """A seekable, buffered, read-only binary file; `ObjectDamaged` if it is another version than `etag`."""
        ...

    def read(self, uri: str, limit: int | None = None) -> bytes:
        """The whole of an object.

        Raises `ObjectTooLarge` above `limit` bytes, and `NotAFile` for devices and pipes.
        """
        ...
