"""What the package asks of an object store; `local.py` and `s3.py` answer it.

Two promises carry the commit protocol: an object becomes visible only whole (whatever dies while it is
written), and `create` lets exactly one of several racing callers win.
"""

from __future__ import annotations

import contextlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

from trio_ray.errors import ObjectDamaged, StoreError

TEMPORARY_PREFIX = ".trio-ray-tmp-"
"""Base name of what is no object (yet): half-written files, write probes. Listings leave it out."""

BytesLike = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A stored object: its name below the store's root, bytes, change marker, seconds since the epoch."""

    name: str
    size: int
    etag: str
    modified: float


@dataclass(frozen=True, slots=True)
class UnfinishedWrite:
    """Something a writer left behind that is no object: a temporary file or an open multipart upload.

    `name` says where, `handle` is what the store needs to remove it, `size` is 0 where the store does not
    tell.
    """

    name: str
    handle: str
    size: int
    modified: float


class ObjectWriter(ABC):
    """An object while it is written.

    Nothing is visible before `close` returns; used as a context, an error aborts.
    """

    @abstractmethod
    def write(self, data: BytesLike) -> None:
        """Append bytes; blocks while too much is in flight. Raises `StoreError`."""

    @abstractmethod
    def close(self) -> None:
        """Make the object visible, replacing one of that name.

        Raises `StoreError`; the object is then not there.
        """

    @abstractmethod
    def abort(self) -> None:
        """Throw away what was written; does nothing after `close` or another `abort`. Never raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class ObjectStore(ABC):
    """Objects below one root, by names with `/` in them. Thread-safe and picklable.

    Every method raises `StoreError`: `ObjectMissing`, `AccessRefused` and `ObjectDamaged` where that is the
    cause.
    """

    uri: str

    def uri_of(self, name: str) -> str:
        """The full URI of an object, for messages and records."""
        return f"{self.uri.rstrip('/')}/{name}"

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose name starts with `prefix`, each name once, in one fixed order."""

    @abstractmethod
    def stat(self, name: str) -> ObjectInfo:
        """What a listing would say of one object."""

    @abstractmethod
    def read(self, name: str, limit: int | None = None) -> bytes:
        """A whole object.

        Raises:
            ObjectTooLarge: it has more than `limit` bytes; no more than that was read.
            NotAFile: the name leads to a device or pipe.
        """

    @abstractmethod
    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (bytes, writable) with the object's bytes from `offset` on.

        Raises `ObjectDamaged` where the object ends before that; the buffer's content is then undefined.
        """

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on, in memory of their own; see `read_into`."""
        data = bytearray(length)
        self.read_into(name, offset, memoryview(data))
        return bytes(data)

    @abstractmethod
    def open(self, name: str, etag: str | None = None) -> BinaryIO:
        """A seekable, buffered, read-only file; it fails rather than mix two versions of an object.

        Args:
            name: of the object.
            etag: the version that is wanted, as `ObjectInfo` has it; any if not given.

        Raises:
            ObjectDamaged: the object is another version than `etag`.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write an object only if there is none of that name; True if this call made it."""

    @abstractmethod
    def put(self, name: str, data: BytesLike) -> None:
        """Write a whole object, replacing one of that name."""

    @abstractmethod
    def writer(self, name: str) -> ObjectWriter:
        """Stream an object of unknown length."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none."""

    def delete_all(self, names: Iterable[str]) -> None:
        """Remove many objects, with as few requests as the store allows; no error for those that are not there."""
        for name in names:
            self.delete(name)

    @abstractmethod
    def list_unfinished(self) -> Iterator[UnfinishedWrite]:
        """What interrupted writers left behind, and what running ones hold at this moment."""

    @abstractmethod
    def remove_unfinished(self, unfinished: UnfinishedWrite) -> None:
        """Remove one of those; no error if it is gone."""

    def check_writable(self) -> None:
        """Prove that this root can be written and that create-only holds, by a probe that is deleted again.

        Raises:
            AccessRefused: credentials or permissions are wrong.
            StoreError: no such bucket, unreachable, or the store ignores the create-only condition.
        """
        probe = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            first, second = self.create(probe, b"probe"), self.create(probe, b"second probe")
        finally:
            with contextlib.suppress(StoreError):
                self.delete(probe)
        if not first or second:
            raise StoreError(
                self.uri,
                "overwrites objects that were to be created only if absent, so two runs would destroy each "
                "other's commits; use a store that honours If-None-Match",
            )


def check_version(uri: str, found: str, wanted: str | None) -> None:
    """Raise `ObjectDamaged` if an object's etag is not the one that is wanted; None stands for any."""
    if wanted is not None and found != wanted:
        raise ObjectDamaged(uri, "was replaced since it was listed; run this again, so that it is listed anew")


def check_name(name: str, uri: str) -> str:
    """Return `name` if it stays below the root `uri`; raise `StoreError` otherwise."""
    if not name or name.startswith("/") or "\0" in name or any(step in ("", ".", "..") for step in name.split("/")):
        raise StoreError(uri, f"{name!r} is not the name of an object: use relative names without '.', '..' or '//'")
    return name
