"""A cluster that cannot be joined is named by the variable that names it."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import RayError

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
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS: 'ray://head:10001' .*connection timeout; "), ray_session(1):
        pass


def test_a_ray_that_does_not_start_here_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(JobFailed, match=r"^Ray could not be started on this machine: The current node"), ray_session(1):
        pass
