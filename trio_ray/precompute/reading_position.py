"""How much of a shard's input has been read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from trio_ray.source.sample import BadSample, Opener, Sample, Shard


class ReadingPosition:
    """An `Opener` that watches the reading of one shard: a run of rows by their numbers, a whole file by its position.

    Args:
        shard: that is read.
        opener: opens it, and the images that it names.
    """

    def __init__(self, shard: Shard, opener: Opener) -> None:
        self._shard = shard
        self._opener = opener
        self._file: BinaryIO | None = None
        self._row = 0

    def open(self, uri: str, etag: str | None = None) -> BinaryIO:
        """See `Opener`."""
        file = self._opener.open(uri, etag)
        if uri == self._shard.uri:
            self._file = file
        return file

    def read(self, uri: str, limit: int | None = None) -> bytes:
        """See `Opener`."""
        return self._opener.read(uri, limit)

    def followed(self, items: Iterable[Sample | BadSample]) -> Iterator[Sample | BadSample]:
        """The items, unchanged."""
        for item in items:
            self._row = item.index + 1
            yield item

    @property
    def share(self) -> float:
        """Of the input that has been read, from 0 to 1. Several samples of one row count as rows."""
        shard = self._shard
        if shard.rows is not None:
            return min(1.0, self._row / max(1, shard.rows[1] - shard.rows[0]))
        if self._file is None or self._file.closed or shard.size <= 0:
            return 1.0 if self._file is not None else 0.0
        return min(1.0, self._file.tell() / shard.size)
