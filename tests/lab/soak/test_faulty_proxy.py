"""The proxy's faults are what they are called, on a real S3 server."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.seaweed import S3Server
from trio_ray.config import S3Config
from trio_ray.lab.soak import faulty_proxy as module
from trio_ray.lab.soak.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy
from trio_ray.store.opening import open_store

BODY = bytes(range(256)) * 40


@contextmanager
def always(server: S3Server, fault: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy all of whose requests have one fault."""
    monkeypatch.setattr(module, "FAULTS", (fault,))
    with faulty_proxy(server.endpoint_url, 1.0, 0) as proxy:
        yield proxy


def one_try(proxy: FaultyProxy) -> Any:
    return boto3.client("s3", endpoint_url=proxy.endpoint_url, config=Config(retries={"total_max_attempts": 1}))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_reaches_the_client_as_itself(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A write has taken effect exactly where the fault says so; a read fails, or is late and whole."""
    monkeypatch.setattr(module, "LONGEST_DELAY_S", 0.05)
    bucket, clean = s3_environment.bucket, s3_environment.client()
    clean.put_object(Bucket=bucket, Key=f"proxied/{fault}-read", Body=BODY)
    with always(s3_environment, fault, monkeypatch) as proxy:
        client = one_try(proxy)
        try:
            client.put_object(Bucket=bucket, Key=f"proxied/{fault}", Body=b"x")
            put = "done"
        except Exception as error:
            put = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
        try:
            got = client.get_object(Bucket=bucket, Key=f"proxied/{fault}-read")["Body"].read()
        except Exception:
            got = None
    assert (got == BODY) is (fault == "delay")
    there = clean.list_objects_v2(Bucket=bucket, Prefix=f"proxied/{fault}").get("Contents", ())
    assert (f"proxied/{fault}" in {entry["Key"] for entry in there}) is (fault in ("reset_after", "cut_body", "delay"))
    assert put == {"503": "SlowDown", "500": "InternalError", "delay": "done"}.get(fault, "ConnectionClosedError")
    assert proxy.requests == 2
    assert proxy.faults.total() == 2


def test_a_store_gets_through_and_a_write_is_done_once(s3_environment: S3Server) -> None:
    with faulty_proxy(s3_environment.endpoint_url, 0.4, 3) as proxy:
        store = open_store(s3_environment.fresh_uri(), S3Config(endpoint_url=proxy.endpoint_url, region="us-east-1"))
        assert [store.create(f"{number}", BODY) for number in range(8)] == [True] * 8
        assert not store.create("0", b"another")
        assert all(store.read(f"{number}") == BODY for number in range(8))
        assert len(list(store.list())) == 8
    assert 0.2 < proxy.faults.total() / proxy.requests < 0.6


def test_a_stopped_proxy_listens_no_more(s3_environment: S3Server) -> None:
    with faulty_proxy(s3_environment.endpoint_url, 0.0, 0) as proxy:
        port = proxy.server_address[1]
    with pytest.raises(OSError, match="refused"):
        http.client.HTTPConnection("127.0.0.1", port).request("GET", "/")
