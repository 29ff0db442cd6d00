"""Tests of Triton kernels run on a GPU, and in Triton's interpreter, on the CPU, in a process of its own: it is chosen
before Triton is imported. `test_interpreter` starts that process.
"""

from __future__ import annotations

import os
from types import ModuleType, SimpleNamespace

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _patch_language_once() -> None:
    """Triton's interpreter looks through its whole language again at each call of a device function, which takes most
    of the time of a small program. Here the language is patched once, for as long as the process lives.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: SimpleNamespace(restore=lambda: None)


if INTERPRETED:
    _patch_language_once()

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
