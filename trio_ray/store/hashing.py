"""Whole-object checksums, computed while the object streams by."""

from __future__ import annotations

import xxhash

from trio_ray.store.objects import BytesLike, ObjectWriter


class HashingWriter:
    """Passes bytes on to `writer`, counting and hashing (xxh3-128) them on the way."""

    def __init__(self, writer: ObjectWriter) -> None:
        self.writer = writer
        self.size = 0
        self._hash = xxhash.xxh3_128()

    def write(self, data: BytesLike) -> None:
        """Append bytes. Raises `StoreError`."""
        self.writer.write(data)
        self._hash.update(data)
        self.size += memoryview(data).nbytes

    @property
    def checksum(self) -> str:
        """xxh3-128 (hex) of everything written so far."""
        return self._hash.hexdigest()
