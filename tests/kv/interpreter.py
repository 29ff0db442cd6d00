"""Tests of Triton kernels run on a GPU, and where there is none, in Triton's interpreter, which is chosen before Triton
is imported: in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

on_devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="runs below, in a process of its own")),
    ],
)
"""Both ways; the test moves its tensors to `device`."""


def beside_the_interpreter(test: Callable[[], None]) -> Callable[[], None]:
    """Mark the test that has the others of its file run in the interpreter."""
    for mark in (
        pytest.mark.slow,
        pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed"),
        pytest.mark.skipif(INTERPRETED, reason="this is that process"),
    ):
        test = mark(test)
    return test


def hold_in_the_interpreter(file: str) -> None:
    """Run a file's tests there."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "cpu", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
