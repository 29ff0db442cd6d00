"""From a URI to its object store."""

from __future__ import annotations

from pathlib import Path

from trio_ray.config import S3Config
from trio_ray.errors import ConfigError, StoreError
from trio_ray.store.local import LocalStore
from trio_ray.store.objects import ObjectStore

S3_SCHEME = "s3://"
FILE_SCHEME = "file://"


def open_store(uri: str, s3: S3Config) -> ObjectStore:
    """The store of a folder (a path or `file://` URI) or of `s3://bucket/prefix`. Nothing is touched yet.

    Raises:
        StoreError: another scheme, or an S3 URI without a bucket.
    """
    if uri.startswith(S3_SCHEME):
        from trio_ray.store.s3 import S3Store  # boto3 takes half a second to import, which a folder has no use for

        bucket, prefix = split_s3_uri(uri)
        return S3Store(bucket, prefix, s3)
    return LocalStore(local_path(uri))


def open_output(uri: str, s3: S3Config) -> ObjectStore:
    """The store of a job's output, to which something can be written.

    Raises:
        ConfigError: nothing can be written there; names `output`.
    """
    try:
        store = open_store(uri, s3)
        store.check_writable()
    except StoreError as error:
        raise ConfigError("output", str(error)) from None
    return store


def split_s3_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` as bucket and key (or prefix); raises `StoreError` if the bucket is missing."""
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise StoreError(uri, "names no bucket; write s3://bucket/prefix")
    return bucket, key


def local_path(uri: str) -> Path:
    """The absolute path of a local URI; raises `StoreError` for schemes that are neither local nor S3."""
    path = uri.removeprefix(FILE_SCHEME)
    if "://" in path or not path:
        raise StoreError(uri, "is neither a local path nor an s3:// URI")
    return Path(path).expanduser().absolute()
