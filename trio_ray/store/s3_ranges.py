"""Ranges of S3 objects, read by obstore: the bulk of what reading a cache asks for.

obstore signs, sends and retries in threads of its own that need no Python lock, so with many cores it reads several
times as fast as boto3's threads (docs/measured/reading.md). It serves ranges alone, for two reasons: its threads do not
survive a fork, and the processes that fork a data loader's workers have usually opened a cache before, which takes
whole objects and streams but no ranges; and it has no word for the conditional writes and metadata that commits need.
Endpoint, region, certificates and credentials are those that boto3 has found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import obstore
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import NoCredentialsError
from obstore.store import S3Store as Bucket

from trio_ray.errors import ObjectDamaged
from trio_ray.store.s3_errors import translated

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential

_CONNECT_S, _READ_S, _REQUEST_S = 10, 60, 3600
_RETRIED_FOR = timedelta(minutes=5)
"""A request is retried with the signature that it has, which is valid for some minutes only."""
_CREDENTIALS_FOR = timedelta(minutes=10)
"""How long temporary credentials are used before boto3 is asked again; it renews them 10 to 15 minutes early."""
_UNNAMEABLE = re.compile(r"//|^/|/$|[\x00-\x1f\x7f]")
_HOST_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


class Address(NamedTuple):
    """Where a bucket is asked for: the URL, and whether the bucket's name is part of its host."""

    url: str
    in_host: bool


class RangeReader:
    """Reads ranges of the objects of one bucket. Threads may share it.

    Args:
        bucket: its name.
        address: where it is.
        region: that requests are signed for.
        credentials: as boto3 found them; None where it found none.
        ca_bundle: path of further certificates that are trusted.
        attempts: how often a request is tried.

    Raises:
        NoCredentialsError: there are no credentials.
    """

    _runtime_of: int | None = None
    """The process whose threads read; a fork of it has none of them."""

    def __init__(
        self,
        bucket: str,
        address: Address,
        region: str,
        credentials: Credentials | None,
        ca_bundle: str | None,
        attempts: int,
    ) -> None:
        if credentials is None:
            raise NoCredentialsError
        client: ClientConfig = {
            "allow_http": address.url.startswith("http://"),
            "connect_timeout": f"{_CONNECT_S}s",
            "read_timeout": f"{_READ_S}s",
            "timeout": f"{_REQUEST_S}s",
        }
        if ca_bundle:
            client["root_certificate"] = Path(ca_bundle).read_bytes()
        self._bucket = Bucket(
            bucket,
            config={
                "aws_endpoint_url_s3": address.url,
                "region": region,
                "virtual_hosted_style_request": address.in_host,
            },
            client_options=client,
            retry_config={"max_retries": attempts - 1, "retry_timeout": _RETRIED_FOR},
            credential_provider=_provider(credentials),
        )

    @classmethod
    def can_read(cls, key: str) -> bool:
        """Whether this process can read this object by ranges: it is no fork of one that has, and obstore has a path
        for the key.
        """
        return cls._runtime_of in (None, os.getpid()) and not _UNNAMEABLE.search(key)

    def read_into(self, key: str, uri: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the object's bytes from `offset` on, without Python's lock while it waits.

        Of a body that breaks off the rest is asked for again, of the same version.

        Args:
            key: for which `can_read` holds.
            uri: names it in errors.
            offset: of the first byte.
            buffer: bytes, writable.

        Raises:
            StoreError: see `ObjectStore.read_into`.
        """
        if not len(buffer):
            return
        RangeReader._runtime_of = os.getpid()
        with translated(uri):
            answer = obstore.get(self._bucket, key, options={"range": (offset, offset + len(buffer))})
            data = np.frombuffer(answer.bytes(), np.uint8)
        if len(data) < len(buffer):
            message = f"gave {len(data)} of {len(buffer)} bytes at offset {offset}; it was truncated"
            raise ObjectDamaged(uri, message)
        np.copyto(np.frombuffer(buffer, np.uint8), data)


def address_of(bucket: str, endpoint_url: str, by_path: bool) -> Address:
    """Where a bucket is asked for, as boto3 does it: its name is part of the path where `by_path`, and where it is no
    name for a host.
    """
    if by_path or not _HOST_NAME.fullmatch(bucket):
        return Address(endpoint_url, in_host=False)
    scheme, host, *_ = urlsplit(endpoint_url)
    return Address(f"{scheme}://{bucket}.{host}", in_host=True)


def _provider(credentials: Any) -> Callable[[], S3Credential]:
    is_temporary = isinstance(credentials, RefreshableCredentials)

    def current() -> S3Credential:
        own = credentials.get_frozen_credentials()
        return {
            "access_key_id": own.access_key,
            "secret_access_key": own.secret_key,
            "token": own.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_FOR if is_temporary else None,
        }

    return current
