"""The example of docs/examples/vllm runs as it is printed there, from an empty folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "vllm" / "serve.sh"


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": binaries, "SCENES": "2", "PORT": str(port)}
    done = subprocess.run(
        ["bash", str(EXAMPLE), "out"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("->") == 8
