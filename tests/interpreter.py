"""Tests of Triton kernels run on a GPU, and in Triton's interpreter, on the CPU, in a process of its own: it is chosen
before Triton is imported. `test_interpreter` starts that process.
"""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

HALF = torch.float16 if INTERPRETED else torch.bfloat16
"""The interpreter cuts bfloat16 off where a GPU rounds it, and its matrix products take it for whole numbers."""

on_devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="runs in tests/test_interpreter.py")),
    ],
)
"""Both ways; the test moves its tensors to `device`."""


def by_kernels(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Have these modules take their kernels in the interpreter too, which they do on a GPU alone."""
    if INTERPRETED:
        for module in modules:
            monkeypatch.setattr(module, "has_triton", lambda device: True)
