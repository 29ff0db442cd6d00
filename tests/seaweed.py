"""A real S3 server for tests, as pytest fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_ray.lab.s3_server import NoServer, S3Server, running_server

__all__ = ["S3Server", "s3_environment", "s3_server"]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the session, on free ports, killed at its end; it refuses unknown keys and buckets."""
    try:
        with running_server(tmp_path_factory.mktemp("seaweed"), "tests") as server:
            yield server
    except NoServer as error:
        pytest.fail(f"{error} (the development extra has it)")


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
