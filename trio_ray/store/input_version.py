"""How a copy of an input file is known to be the same input: by its content, whatever its change marker is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache

import xxhash

from trio_ray.errors import StoreError
from trio_ray.store.inputs import StoreOpener
from trio_ray.store.local import translated
from trio_ray.store.opening import S3_SCHEME, local_path

_CHUNK = 1 << 20
_MULTIPART_ETAG = re.compile(r"([0-9a-f]{32})-(\d{1,5})")
_PLAIN_ETAG = re.compile(r"[0-9a-f]{32}")
_PIECE_MIB = (
    5, 6, 7, 8, 10, 12, 15, 16, 20, 24, 25, 32, 40, 48, 50, 64, 80, 96, 100, 128, 160, 200, 250, 256, 500, 512, 1000,
    1024, 2048, 5000, 5120,
)  # fmt: skip
"""Sizes of a multipart upload's pieces that S3's clients take, MiB. Some take the same numbers of 10^6 bytes."""


def local_checksum(uri: str, etag: str) -> str | None:
    """The xxh3-128 (hex) of a local file; None for an S3 object, whose ETag depends on its content already.

    Args:
        uri: of the file.
        etag: its change marker; a file of many shards is read once for each in a process.

    Raises:
        StoreError: the file cannot be read.
    """
    return None if uri.startswith(S3_SCHEME) else _checksum(uri, etag)


def is_copy(
    uri: str, size: int, etag: str, earlier_etag: str, earlier_checksum: str | None, opener: StoreOpener
) -> bool:
    """Whether a file has the content that an earlier version of it had, which had the same size. Reads it once.

    An S3 object's ETag is the MD5 of its content or, of a multipart upload, that of its pieces' MD5s; so the content
    that is there now shows whether it would have had the earlier ETag. Where the bucket encrypts with keys of its own,
    an ETag is no MD5, and a copy counts as changed.

    Args:
        uri: of the file.
        size: of both, bytes.
        etag: its change marker now.
        earlier_etag: the marker of the earlier version.
        earlier_checksum: `local_checksum` of the earlier version.
        opener: reads it.
    """
    try:
        if not uri.startswith(S3_SCHEME):
            return earlier_checksum is not None and local_checksum(uri, etag) == earlier_checksum
        return _would_have_etag(uri, size, etag, earlier_etag, opener)
    except StoreError:
        return False  # the run that reads it says why


@lru_cache(maxsize=4096)
def _checksum(uri: str, etag: str) -> str:
    digest = xxhash.xxh3_128()
    path = local_path(uri)
    with translated(uri), path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _would_have_etag(uri: str, size: int, etag: str, earlier: str, opener: StoreOpener) -> bool:
    multipart = _MULTIPART_ETAG.fullmatch(earlier)
    if multipart is None and _PLAIN_ETAG.fullmatch(earlier) is None:
        return False
    pieces = list(_piece_sizes(size, int(multipart[2]))) if multipart else [max(1, size)]
    digests = [_PieceDigest(piece) for piece in pieces]
    with opener.open(uri, etag) as file:
        while digests and (data := file.read(_CHUNK)):
            for digest in digests:
                digest.update(data)
    wanted = multipart[1] if multipart else earlier
    return any((digest.of_pieces() if multipart else digest.of_first()) == wanted for digest in digests)


def _piece_sizes(size: int, count: int) -> Iterator[int]:
    """Sizes that cut so many bytes into so many pieces: those of clients, and the smallest in whole MiB."""
    if count == 0:
        return
    smallest = -(-size // (count << 20)) << 20
    for piece in sorted({smallest, *(n << 20 for n in _PIECE_MIB), *(n * 10**6 for n in _PIECE_MIB)}):
        if piece > 0 and max(1, -(-size // piece)) == count:
            yield piece


class _PieceDigest:
    """MD5s of an object's pieces, while it is read."""

    def __init__(self, piece: int) -> None:
        self._piece = piece
        self._room = piece
        self._open = hashlib.md5(usedforsecurity=False)
        self._closed: list[bytes] = []

    def update(self, data: bytes) -> None:
        while data:
            self._open.update(data[: self._room])
            data, self._room = data[self._room :], self._room - min(self._room, len(data))
            if self._room == 0:
                self._closed.append(self._open.digest())
                self._open, self._room = hashlib.md5(usedforsecurity=False), self._piece

    def of_pieces(self) -> str:
        """The hex MD5 of all pieces' MD5s."""
        return hashlib.md5(b"".join(self._all()), usedforsecurity=False).hexdigest()

    def of_first(self) -> str:
        """The hex MD5 of the first piece."""
        return self._all()[0].hex()

    def _all(self) -> list[bytes]:
        last = [self._open.digest()] if self._room < self._piece or not self._closed else []
        return [*self._closed, *last]
