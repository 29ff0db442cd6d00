"""A job's connection to Ray: the cluster that it was submitted to, or one started for it on this machine."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._private import ray_logging
from ray.exceptions import AuthenticationError, RayActorError, RayError, RayTaskError

from trio_ray.errors import ConfigError, JobFailed
from trio_ray.reachable import why_unreachable

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
"""What Ray warns of is about Ray; lost actors and nodes are told by the pool."""


def cluster_given() -> bool:
    """Whether there is a cluster to join: a connection, or the RAY_ADDRESS that Ray's job server sets."""
    return ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def ray_session(cpus: float) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine; leave an existing connection alone.

    Args:
        cpus: that a Ray started here offers at least, however many the machine has.

    Raises:
        ConfigError: RAY_ADDRESS names no cluster that can be joined.
        JobFailed: Ray does not start on this machine.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _join(address)
    else:
        # Named, because Ray would otherwise join whatever was last started here with `ray start`.
        _start(max(math.ceil(cpus), os.cpu_count() or 1))
    try:
        with _without_raylet_messages():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _without_raylet_messages() -> Iterator[None]:
    """Ray prints what raylets report, such as the last lines of a lost node's log, whatever `log_to_driver` says. Its
    own filter of lines (RAY_DEDUP_LOGS_SKIP_REGEX) would have to be set before Ray is imported.
    """
    printed = ray_logging.stdout_deduplicator
    before, printed.skip_re = printed.skip_re, re.compile("")
    try:
        yield
    finally:
        printed.skip_re = before


def _start(cpus: int) -> None:
    try:
        with _own_sigterm():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **_QUIET)
    except AuthenticationError as error:
        raise _no_token(error) from None
    except Exception as error:  # Ray raises plain exceptions where one of its processes does not come up in time
        raise JobFailed(
            f"Ray could not be started on this machine: {' '.join(str(error).split())}; look at its logs under "
            "/tmp/ray/session_latest/logs, and run the same command again when the machine is less busy"
        ) from None


def _no_token(error: AuthenticationError) -> ConfigError:
    return ConfigError(
        "RAY_AUTH_MODE",
        f"the cluster wants a token ({in_one_line(error)}); give it by RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or make "
        "one for a Ray of your own by `ray get-auth-token --generate`",
    )


def _check_listens(address: str) -> None:
    """Ray tries for minutes to join an address from which nobody answers.

    Raises:
        ConfigError: nobody answers; names RAY_ADDRESS.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return  # Ray says what is wrong with it
    if host is None or port is None:  # `auto`, or another word that Ray knows
        return
    why = why_unreachable(host, port)
    if why is not None:
        raise ConfigError(
            "RAY_ADDRESS",
            f"nothing answers at {address!r} ({why}); give a running cluster's address, or unset it to start Ray here",
        )


def _join(address: str) -> None:
    _check_listens(address)
    try:
        with _own_sigterm():
            ray.init(**_QUIET)
    except AuthenticationError as error:
        raise _no_token(error) from None
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:  # of other versions, a wrong token
        raise ConfigError(
            "RAY_ADDRESS",
            f"{address!r} cannot be joined: {' '.join(str(error).split())}; give a running cluster's address, or unset "
            "it to start Ray here",
        ) from None


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM by one that ends the process at once; afterwards it is what it was before."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def gpus_per_replica(setting: float | None) -> float:
    """GPUs that a replica reserves: as set, else one where the cluster, or without one this machine, has any."""
    if setting is not None:
        return setting
    if ray.is_initialized():
        return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0


def in_one_line(error: Exception) -> str:
    """An error of Ray's in one line: it puts the remote traceback into the message, the cause has the sentence."""
    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and cause is not None:
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Where loading failed, the message is the remote traceback, which ends with the cause; otherwise it begins with it.
    return lines[-1 if isinstance(error, RayActorError) and error.actor_init_failed else 0]
