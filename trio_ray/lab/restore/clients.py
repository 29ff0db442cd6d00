"""Bare clients that read ranges and do nothing with them: the ceiling that reading a cache is measured against."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from trio_ray.cache.ranges import Run
from trio_ray.config import S3Config
from trio_ray.store.opening import local_path, split_s3_uri


class Client(ABC):
    """Reads ranges of objects into a buffer that each thread uses again. For benchmarks only: it neither retries nor
    checks.
    """

    def __init__(self) -> None:
        self._own = threading.local()

    @abstractmethod
    def read_range(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with the object's bytes from `offset` on."""

    def close(self) -> None:  # noqa: B027
        """Close what it holds open; by default nothing."""

    def read(self, runs: Sequence[Run], threads: int) -> None:
        """Read all runs with this many requests in flight."""

        def one(run: Run) -> None:
            self.read_range(run.members[0].name, run.members[0].offset, self._buffer(run.size))

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, runs))

    def _buffer(self, size: int) -> memoryview:
        held = getattr(self._own, "buffer", None)
        if held is None or len(held) < size:
            held = self._own.buffer = memoryview(bytearray(size))
        return held[:size]


class Files(Client):
    """`preadv` into the buffer."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._root = local_path(uri)

    def read_range(self, name: str, offset: int, buffer: memoryview) -> None:
        file = os.open(self._root / name, os.O_RDONLY)
        try:
            filled = 0
            while filled < len(buffer):
                filled += os.preadv(file, [buffer[filled:]], offset + filled)
        finally:
            os.close(file)


class Boto3(Client):
    """`get_object` and `read`, in threads."""

    def __init__(self, uri: str, s3: S3Config) -> None:
        super().__init__()
        import boto3
        from botocore.config import Config

        self._bucket, self._prefix = split_s3_uri(uri)
        config = Config(max_pool_connections=64, s3={"addressing_style": "path"})
        self._client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name=s3.region, config=config)

    def read_range(self, name: str, offset: int, buffer: memoryview) -> None:
        answer = self._client.get_object(
            Bucket=self._bucket, Key=f"{self._prefix}/{name}", Range=f"bytes={offset}-{offset + len(buffer) - 1}"
        )
        buffer[:] = answer["Body"].read()


class Obstore(Client):
    """`get_range` of a client written in Rust, in threads."""

    def __init__(self, uri: str, s3: S3Config) -> None:
        super().__init__()
        from obstore.store import S3Store

        bucket, prefix = split_s3_uri(uri)
        self._store: Any = S3Store(
            bucket,
            prefix=prefix,
            endpoint=s3.endpoint_url,
            region=s3.region,
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )

    def read_range(self, name: str, offset: int, buffer: memoryview) -> None:
        buffer[:] = memoryview(self._store.get_range(name, start=offset, length=len(buffer)))


class Crt(Client):
    """AWS's common runtime, which `boto3[crt]` installs: bodies arrive in callbacks of its own threads."""

    def __init__(self, uri: str, s3: S3Config) -> None:
        super().__init__()
        from awscrt import auth, http, io
        from awscrt import s3 as crt_s3

        self._crt, self._http = crt_s3, http
        self._bucket, self._prefix = split_s3_uri(uri)
        self._host = urlsplit(s3.endpoint_url or "").netloc
        group = io.EventLoopGroup(os.cpu_count())
        credentials = auth.AwsCredentialsProvider.new_static(
            os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        )
        self._client: Any = crt_s3.S3Client(
            bootstrap=io.ClientBootstrap(group, io.DefaultHostResolver(group)),
            region=s3.region,
            signing_config=crt_s3.create_default_s3_signing_config(region=s3.region, credential_provider=credentials),
            tls_mode=crt_s3.S3RequestTlsMode.DISABLED,
            part_size=16 << 20,
        )

    def read_range(self, name: str, offset: int, buffer: memoryview) -> None:
        def take(chunk: bytes, offset: int, begin: int = offset, **_: object) -> None:
            buffer[offset - begin : offset - begin + len(chunk)] = chunk

        headers = [("host", self._host), ("range", f"bytes={offset}-{offset + len(buffer) - 1}")]
        request = self._http.HttpRequest(
            "GET", f"/{self._bucket}/{self._prefix}/{name}", self._http.HttpHeaders(headers)
        )
        kind = self._crt.S3RequestType.GET_OBJECT
        self._client.make_request(request=request, type=kind, on_body=take).finished_future.result()

    def close(self) -> None:
        self._client = None


S3_CLIENTS: dict[str, tuple[str, Callable[[str, S3Config], Client]]] = {
    "boto3": ("boto3", Boto3),
    "obstore": ("obstore", Obstore),
    "awscrt": ("awscrt", Crt),
}
"""For each client, the package that it needs and how it is made."""


def bare_clients(uri: str, s3: S3Config) -> dict[str, Client]:
    """The installed clients that can read at this place."""
    if not uri.startswith("s3://"):
        return {"pread": Files(uri)}
    return {name: make(uri, s3) for name, (package, make) in S3_CLIENTS.items() if find_spec(package)}
