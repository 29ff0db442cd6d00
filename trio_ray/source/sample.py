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
    TEXT_MISSING = "text_missing"
    TEXT_EMPTY = "text_empty"
    TEXT_NOT_UTF8 = "text_not_utf8"
    TEXT_MALFORMED = "text_malformed"
    IMAGE_COUNT = "image_count"
    PROMPT_TOO_LONG = "prompt_too_long"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_FINITE = "not_finite"
    DUPLICATE_KEY = "duplicate_key"
    SHARD_TRUNCATED = "shard_truncated"
    SHARD_UNREADABLE = "shard_unreadable"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the prompt. `text` may hold `<image>` markers where the images go."""

    role: Literal["user", "assistant"]
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
    """A sample that goes to quarantine instead of the cache."""

    key: str
    index: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of input work: a file, or a run of rows of one.

    `name` is unique in a cache and safe as a folder name. `rows` is the half-open range of rows of a file
    that was split, None for a whole file. `offset` is the byte at which the first of them starts, where rows
    are lines: without it each run of a large JSONL file would have to read all of the file before it.
    """

    name: str
    uri: str
    size: int
    etag: str
    format: Literal["webdataset", "parquet", "jsonl"]
    rows: tuple[int, int] | None = None
    offset: int = 0


class Opener(Protocol):
    """How a source reads files, wherever they are. Raises `StoreError` (never a bare OSError) on failure."""

    def open(self, uri: str, etag: str | None = None) -> BinaryIO:
        """A seekable, buffered, read-only binary file; `ObjectDamaged` if it is another version than `etag`."""
        ...

    def read(self, uri: str) -> bytes:
        """The whole of a (small) object."""
        ...
