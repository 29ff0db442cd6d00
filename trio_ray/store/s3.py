"""A bucket, or a prefix in one, as an object store (AWS S3 and what speaks its protocol).

Ranges are read by obstore (`s3_ranges`), which is why reading a cache is fast; all else goes through boto3: conditional
writes, uploads, listings, whole small objects, and streams over inputs and tables.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any, BinaryIO, cast

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

from trio_ray.config import S3Config
from trio_ray.errors import ObjectDamaged, ObjectMissing, ObjectTooLarge, StoreError
from trio_ray.store.objects import (
    TEMPORARY_PREFIX,
    BytesLike,
    ObjectInfo,
    ObjectStore,
    ObjectWriter,
    UnfinishedWrite,
    check_version,
)
from trio_ray.store.s3_errors import BROKEN_BODY, error_code, is_conflict, is_taken, translated
from trio_ray.store.s3_ranges import RangeReader, address_of
from trio_ray.store.s3_reachable import check_reachable
from trio_ray.store.s3_reader import S3Reader
from trio_ray.store.s3_writer import Pieces, S3Writer

_TOKEN = "trio-ray-creator"
_READ_BUFFER = 1 << 20
_CONFLICT_PAUSE_S = 0.2
_DELETED_AT_ONCE = 1000
"""What one DeleteObjects request may name."""


class S3Store(ObjectStore):
    """Objects of `bucket` whose key starts with `prefix/`.

    The client is made on first use and never pickled; credentials come by the usual AWS chain on every
    machine.
    """

    def __init__(self, bucket: str, prefix: str, config: S3Config) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._config = config
        self._making = threading.RLock()
        self._pieces = Pieces(config.part_mib << 20, most=2 * config.upload_threads)
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")

    def __reduce__(self) -> tuple[type[S3Store], tuple[str, str, S3Config]]:
        return S3Store, (self._bucket, self._prefix, self._config)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for entry in self._pages("list_objects_v2", "Contents", self._prefix + prefix):
            name = entry["Key"].removeprefix(self._prefix)
            # Consoles make zero-byte 'folders' whose key ends with a slash.
            if name and not name.endswith("/") and not _base(name).startswith(TEMPORARY_PREFIX):
                yield ObjectInfo(name, entry["Size"], _etag(entry), entry["LastModified"].timestamp())

    def stat(self, name: str) -> ObjectInfo:
        with translated(self.uri_of(name)):
            head = self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        return ObjectInfo(name, head["ContentLength"], _etag(head), head["LastModified"].timestamp())

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A whole object; a body that breaks off is asked for again."""
        with translated(self.uri_of(name)):
            failures = 0
            while True:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
                if limit is not None and answer["ContentLength"] > limit:
                    answer["Body"].close()
                    raise ObjectTooLarge(self.uri_of(name), f"has more than {limit} bytes")
                try:
                    return answer["Body"].read()
                except BROKEN_BODY:
                    failures += 1
                    if failures == self._config.max_attempts:
                        raise

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        key = self._key(name)
        if RangeReader.can_read(key):
            self._ranges.read_into(key, self.uri_of(name), offset, buffer)
            return
        with self.open(name) as file:
            file.seek(offset)
            filled = cast(io.BufferedReader, file).readinto(buffer)
        if filled < len(buffer):
            message = f"gave {filled} of {len(buffer)} bytes at offset {offset}; it was truncated"
            raise ObjectDamaged(self.uri_of(name), message)

    def open(self, name: str, etag: str | None = None) -> BinaryIO:
        info = self.stat(name)
        check_version(self.uri_of(name), info.etag, etag)
        reader = S3Reader(
            self._client,
            {"Bucket": self._bucket, "Key": self._key(name), "IfMatch": f'"{info.etag}"'},
            self.uri_of(name),
            info.size,
            self._config.max_attempts,
        )
        return cast(BinaryIO, io.BufferedReader(reader, _READ_BUFFER))

    def create(self, name: str, data: bytes) -> bool:
        # The token tells our own object from another's when the answer to a first try was lost and a retry is
        # refused.
        token = uuid.uuid4().hex
        target = {"Bucket": self._bucket, "Key": self._key(name)}
        with translated(self.uri_of(name)):
            conflicts = 0
            while True:
                try:
                    self._client.put_object(**target, Body=data, IfNoneMatch="*", Metadata={_TOKEN: token})
                    return True
                except ClientError as error:
                    if is_taken(error):
                        return self._holds_token(target, token)
                    conflicts += 1
                    if not is_conflict(error) or conflicts == self._config.max_attempts:
                        raise
                time.sleep(_CONFLICT_PAUSE_S * 2**conflicts)

    def put(self, name: str, data: BytesLike) -> None:
        with translated(self.uri_of(name)):
            body = bytes(data) if isinstance(data, memoryview) else data
            self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=body)

    def writer(self, name: str) -> ObjectWriter:
        return S3Writer(
            self._client,
            {"Bucket": self._bucket, "Key": self._key(name)},
            self.uri_of(name),
            self._pieces,
            self._config.upload_threads,
        )

    def delete(self, name: str) -> None:
        with translated(self.uri_of(name)), contextlib.suppress(ObjectMissing):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def delete_all(self, names: Iterable[str]) -> None:
        waiting = iter(names)
        while some := list(islice(waiting, _DELETED_AT_ONCE)):
            keys = [{"Key": self._key(name)} for name in some]
            with translated(self.uri):
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
            for failed in answer.get("Errors", ()):
                if failed["Code"] not in ("NoSuchKey", "404"):
                    self.delete(failed["Key"].removeprefix(self._prefix))  # raises what is wrong, in its own words

    def list_unfinished(self) -> Iterator[UnfinishedWrite]:
        for entry in self._pages("list_multipart_uploads", "Uploads", self._prefix):
            name = entry["Key"].removeprefix(self._prefix)
            yield UnfinishedWrite(name, entry["UploadId"], 0, entry["Initiated"].timestamp())
        # Write probes lie in the root only.
        for entry in self._pages("list_objects_v2", "Contents", self._prefix + TEMPORARY_PREFIX):
            name = entry["Key"].removeprefix(self._prefix)
            yield UnfinishedWrite(name, "", entry["Size"], entry["LastModified"].timestamp())

    def remove_unfinished(self, unfinished: UnfinishedWrite) -> None:
        if not unfinished.handle:
            return self.delete(unfinished.name)
        with translated(self.uri_of(unfinished.name)):
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._key(unfinished.name), UploadId=unfinished.handle
                )
            except ClientError as error:
                if error_code(error) not in ("NoSuchUpload", "404"):
                    raise

    def check_writable(self) -> None:
        # A person waits for this answer: a wrong endpoint must not use up a job's patience for broken
        # networks.
        hasty = self._config.model_copy(update={"max_attempts": min(3, self._config.max_attempts)})
        ObjectStore.check_writable(S3Store(self._bucket, self._prefix, hasty))

    @cached_property
    def _session(self) -> botocore.session.Session:
        """Configuration and credentials, of this store alone: threads may not share what makes clients."""
        session = botocore.session.get_session()
        if self._config.profile is not None:
            session.set_config_variable("profile", self._config.profile)
        return session

    @property
    def _client(self) -> Any:
        """A boto3 client, which threads may share, but not make at the same time."""
        # `cached_property` had a lock of its own before Python 3.12.
        with self._making:
            return self._made_client

    @cached_property
    def _made_client(self) -> Any:
        if self._own_endpoint is not None:
            check_reachable(self.uri, self._own_endpoint)
        with translated(self.uri):
            return boto3.Session(botocore_session=self._session, region_name=self._config.region).client(
                "s3",
                endpoint_url=self._config.endpoint_url,
                config=Config(
                    # The other modes stop trying for all once a hundred requests were slowed down.
                    retries={"mode": "legacy", "total_max_attempts": self._config.max_attempts},
                    max_pool_connections=max(64, 2 * self._config.upload_threads),
                    connect_timeout=10,
                    read_timeout=60,
                    tcp_keepalive=True,
                    s3={"addressing_style": "path" if self._own_endpoint is not None else "auto"},
                ),
            )

    @property
    def _ranges(self) -> RangeReader:
        with self._making:
            return self._made_ranges

    @cached_property
    def _made_ranges(self) -> RangeReader:
        found = self._client.meta
        with translated(self.uri):
            return RangeReader(
                self._bucket,
                address_of(self._bucket, found.endpoint_url, self._own_endpoint is not None),
                found.region_name,
                self._session.get_credentials(),
                self._session.get_config_variable("ca_bundle"),
                self._config.max_attempts,
            )

    @property
    def _own_endpoint(self) -> str | None:
        """URL of a server that is not AWS's own; those inside a cluster seldom have DNS names for their buckets."""
        given = self._config.endpoint_url
        return given or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None

    def _key(self, name: str) -> str:
        if not name or name.startswith("/") or "\0" in name or any(step in (".", "..") for step in name.split("/")):
            raise StoreError(self.uri, f"{name!r} is not the name of an object")
        return self._prefix + name

    def _pages(self, operation: str, field: str, prefix: str) -> Iterator[Mapping[str, Any]]:
        with translated(self.uri):
            for page in self._client.get_paginator(operation).paginate(Bucket=self._bucket, Prefix=prefix):
                yield from page.get(field, ())

    def _holds_token(self, target: Mapping[str, str], token: str) -> bool:
        head = self._client.head_object(**target)
        return head.get("Metadata", {}).get(_TOKEN) == token


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')
