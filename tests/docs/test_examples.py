"""Every example in docs/examples runs as it is printed there, on a small corpus."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RUNS = sorted(path.parent.name for path in EXAMPLES.glob("*/run.sh"))
SAYS = {
    "precompute-a-corpus": "samples",
    "evaluate-from-a-cache": '"accuracy"',
    "distill-a-student": "held-out questions",
    "use-a-cache-in-python": "prefixes, state",
}


def test_every_example_has_a_page_and_is_known_here() -> None:
    assert set(RUNS) == set(SAYS)
    assert all((EXAMPLES / name / "README.md").is_file() for name in RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": binaries, "SCENES": "8", "STEPS": "4"}
    done = subprocess.run(
        ["bash", str(EXAMPLES / name / "run.sh"), str(tmp_path / "out")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAYS[name] in done.stdout
    assert "Traceback" not in done.stderr
