"""Small real corpora for the tests of the sources: images, tars, an opener over local files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import webdataset
from PIL import Image

from trio_ray.config import SourceConfig
from trio_ray.errors import ObjectMissing, ObjectTooLarge, StoreError
from trio_ray.source.reader import read_shard
from trio_ray.source.sample import BadSample, Sample, Shard
from trio_ray.source.shards import split_file


class LocalOpener:
    """Local files; notes what is read whole, and URIs in `broken` fail as a store would."""

    def __init__(self, broken: Iterable[str] = ()) -> None:
        self.read_uris: list[str] = []
        self._broken = set(broken)

    def open(self, uri: str, etag: str | None = None) -> BinaryIO:
        return io.BufferedReader(io.FileIO(self._path(uri)))

    def read(self, uri: str, limit: int | None = None) -> bytes:
        self.read_uris.append(uri)
        data = self._path(uri).read_bytes()
        if limit is not None and len(data) > limit:
            raise ObjectTooLarge(uri, f"has more than {limit} bytes")
        return data

    def _path(self, uri: str) -> Path:
        if uri in self._broken:
            raise StoreError(uri, "the connection was reset")
        path = Path(uri)
        if not path.is_file():
            raise ObjectMissing(uri, "does not exist")
        return path


class FailingFile(io.BytesIO):
    """A file in a store that stops answering after `answers` reads."""

    def __init__(self, data: bytes, answers: int) -> None:
        super().__init__(data)
        self._answers = answers

    def read(self, size: int | None = -1) -> bytes:
        if self._answers == 0:
            raise StoreError("s3://bucket/file", "the connection was reset")
        self._answers -= 1
        return super().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        if self._answers == 0:
            raise StoreError("s3://bucket/file", "the connection was reset")
        self._answers -= 1
        return super().readline(size)


class ReadCounting(io.BytesIO):
    """Counts the bytes that are read, and notes the most that were asked for at once."""

    amount = 0
    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.amount += len(data)
        self.largest = max(self.largest, len(data) if size is None or size < 0 else size)
        return data


class OneFileOpener:
    """An opener that gives one prepared file for every URI."""

    def __init__(self, make: Callable[[], BinaryIO]) -> None:
        self._make = make

    def open(self, uri: str, etag: str | None = None) -> BinaryIO:
        return self._make()

    def read(self, uri: str, limit: int | None = None) -> bytes:
        return self._make().read()


def encoded(seed: int = 0, size: tuple[int, int] = (9, 7), kind: str = "JPEG") -> bytes:
    """An encoded random image of (width, height) `size`, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def tar_of(samples: Iterable[Mapping[str, object]], compress: bool = False) -> bytes:
    """A tar as webdataset's own writer makes it; bytes are stored as they are and objects as JSON."""
    file = io.BytesIO()
    with webdataset.TarWriter(file, encoder=False, compress=compress, mtime=1.5) as writer:
        for sample in samples:
            writer.write(
                {
                    name: json.dumps(value).encode() if isinstance(value, dict) else value
                    for name, value in sample.items()
                }
            )
    return file.getvalue()


def read_file(
    path: Path, config: SourceConfig | None = None, opener: LocalOpener | None = None
) -> list[Sample | BadSample]:
    """All items of all shards of a file."""
    config = config or SourceConfig()
    opener = opener or LocalOpener()
    shards = split_file(str(path), path.stat().st_size, "etag", config, opener)
    return [item for shard in shards for item in read_shard(shard, config, opener)]


def read_tar(data: bytes, config: SourceConfig | None = None) -> list[Sample | BadSample]:
    """All items of a tar in memory."""
    shard = Shard("tar", "tar", len(data), "etag", "webdataset")
    return list(read_shard(shard, config or SourceConfig(), OneFileOpener(lambda: io.BytesIO(data))))


def reasons(items: Iterable[Sample | BadSample]) -> list[str | None]:
    """The reason of each item, None for the good ones."""
    return [item.reason.value if isinstance(item, BadSample) else None for item in items]
