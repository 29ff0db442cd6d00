"""How a copy of a local input file is known to be the same input: by its content, whatever its time of change is."""

from __future__ import annotations

from functools import lru_cache

import xxhash

from trio_ray.store.local import translated
from trio_ray.store.opening import S3_SCHEME, local_path

_CHUNK = 1 << 20


def local_checksum(uri: str, etag: str) -> str | None:
    """The xxh3-128 (hex) of a local file; None for an S3 object, whose ETag depends on its content already.

    Args:
        uri: of the file.
        etag: its change marker; a file of many shards is read once for each in a process.

    Raises:
        StoreError: the file cannot be read.
    """
    return None if uri.startswith(S3_SCHEME) else _checksum(uri, etag)


@lru_cache(maxsize=4096)
def _checksum(uri: str, etag: str) -> str:
    digest = xxhash.xxh3_128()
    path = local_path(uri)
    with translated(uri), path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()
