"""A seekable stream over one S3 object that survives broken connections."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from trio_ray.errors import ObjectDamaged
from trio_ray.store.s3_errors import BROKEN_BODY, translated

_FIRST_WINDOW = 1 << 20
_LARGEST_WINDOW = 64 << 20


class S3Reader(io.RawIOBase):
    """Raw reads by range requests; wrap it in `io.BufferedReader`.

    Each request asks for a window of the object, not for its rest, so that a seek (Parquet footers and
    columns) does not leave a connection full of unwanted bytes. The window doubles while reading goes
    straight on. `target` holds the object and the `IfMatch` that every request carries, so a replaced object
    is an error and never a mixture.
    """

    def __init__(self, client: Any, target: Mapping[str, str], uri: str, size: int, attempts: int) -> None:
        self._client = client
        self._target = target
        self._uri = uri
        self._size = size
        self._attempts = attempts
        self._position = 0
        self._window = _FIRST_WINDOW
        self._body: Any = None
        self._body_left = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position (beyond the end is allowed, as for files); the next read asks for it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self._uri}: seek to {start + offset}")
        if start + offset != self._position:
            self._drop_body()
            self._window = _FIRST_WINDOW
            self._position = start + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill some of `buffer`; 0 only at the end.

        Raises `StoreError` after `attempts` tries without a byte.
        """
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        for attempt in range(self._attempts):
            with translated(self._uri):
                try:
                    data = self._read_some(wanted)
                except BROKEN_BODY:
                    self._drop_body()
                    if attempt + 1 == self._attempts:
                        raise
                    continue
            if data:
                view[: len(data)] = data
                self._position += len(data)
                return len(data)
            self._drop_body()
        raise ObjectDamaged(self._uri, f"gave no more bytes at {self._position} of {self._size}; it was truncated")

    def readall(self) -> bytes:
        """The rest of the object, in requests of whole windows (the inherited method reads by 8 KiB)."""
        rest = bytearray(max(0, self._size - self._position))
        filled = 0
        while count := self.readinto(memoryview(rest)[filled:]):
            filled += count
        return bytes(rest)

    def close(self) -> None:
        self._drop_body()
        super().close()

    def _read_some(self, wanted: int) -> bytes:
        if self._body is None:
            end = min(self._size, self._position + max(self._window, wanted))
            answer = self._client.get_object(**self._target, Range=f"bytes={self._position}-{end - 1}")
            self._body, self._body_left = answer["Body"], end - self._position
            self._window = min(2 * self._window, _LARGEST_WINDOW)
        data = self._body.read(min(wanted, self._body_left))
        self._body_left -= len(data)
        if self._body_left == 0:
            self._body.read()  # lets the connection go back to the pool
            self._drop_body()
        return data

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
