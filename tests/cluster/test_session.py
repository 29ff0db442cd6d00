"""A cluster that cannot be joined is named by the variable that names it."""

from __future__ import annotations

import time

import pytest
import ray
from ray.exceptions import AuthenticationError, RayError

from trio_ray import reachable
from trio_ray.cluster import session
from trio_ray.cluster.session import ray_session
from trio_ray.errors import ConfigError, JobFailed


def test_what_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head-node")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS: 'head-node' cannot be joined: "), ray_session(1):
        pass
    assert not ray.is_initialized()


@pytest.mark.parametrize("kind", [ConnectionError, RuntimeError, RayError])
def test_a_cluster_that_does_not_answer_or_take_us_is_refused(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: object) -> None:
        raise kind("ray client connection\ntimeout")

    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(session, "why_unreachable", lambda host, port: None)
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS: 'ray://head:10001' .*connection timeout; "), ray_session(1):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no-such-host.invalid:6379"])
def test_an_address_from_which_nobody_answers_is_told_in_seconds(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes."""
    monkeypatch.setattr(reachable, "PAUSE_S", 0.05)
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=rf"^RAY_ADDRESS: nothing answers at '{address}' \("), ray_session(1):
        pass
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["", "ray://head:10001"])
def test_a_missing_token_is_a_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise AuthenticationError("Token authentication is enabled but no token was found")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(session, "why_unreachable", lambda host, port: None)
    with pytest.raises(ConfigError, match=r"^RAY_AUTH_MODE: .*no token was found.*RAY_AUTH_TOKEN_PATH"), ray_session(1):
        pass


def test_a_ray_that_does_not_start_here_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(JobFailed, match=r"^Ray could not be started on this machine: The current node"), ray_session(1):
        pass
