"""What holds for the Triton kernels on a GPU holds for them in Triton's interpreter, on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.interpreter import INTERPRETED

ROOT = Path(__file__).parents[1]

TESTS = {
    "kv/kernels/frames.py": "tests/kv/lossless/test_frames.py",
    "kv/kernels/checksums.py": "tests/kv/kernels/test_checksums.py",
    "kv/kernels/decompress.py": "tests/kv/kernels/test_decompress.py",
    "kv/kernels/inverse_transform.py": "tests/kv/kernels/test_inverse_transform.py",
    "kv/kernels/transform.py": "tests/kv/kernels/test_transform.py",
    "kv/kernels/quantise.py": "tests/kv/kernels/test_quantise.py",
    "method/kernels/supervision.py": "tests/method/kernels/test_supervision.py",
    "method/kernels/suppression.py": "tests/method/kernels/test_suppression.py",
    "model/decode/kernels/attention.py": "tests/model/decode/kernels/test_attention.py",
    "model/decode/kernels/layer.py": "tests/model/decode/kernels/test_layer.py",
}
"""Where the kernels of each module are held against what they must do."""


def test_no_kernel_is_without_tests() -> None:
    package = ROOT / "trio_ray"
    modules = [path for path in package.rglob("*.py") if "@triton.jit" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(package).as_posix() for path in modules} == set(TESTS)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed; there are builds for Linux alone")
def test_the_kernels_hold_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "cpu", *TESTS.values()]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
