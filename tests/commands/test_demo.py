"""`trio-ray demo` goes the whole way on this machine, and the answers from pruned prefixes are mostly right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.precompute.ray_cluster import REPOSITORY
from trio_ray.cache.pruned_cache import PrunedCache

SCENES = 9


@pytest.mark.slow
def test_the_demo_renders_prunes_verifies_answers_and_draws(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trio_ray.cli", "demo", "--folder", "out", "--scenes", str(SCENES)]
    ended = run([*command, "--pictures", "2"], tmp_path, environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr

    answers = re.findall(r"^    -> (.*?)   \(true: (.*)\)$", ended.stdout, re.MULTILINE)
    assert len(answers) >= 10
    assert sum(answer == truth for answer, truth in answers) > len(answers) / 2, answers

    cache = PrunedCache(str(tmp_path / "out" / "cache"))
    assert len(cache) >= 4 * SCENES
    assert len(cache.quarantine) > 3
    assert all(row["retention"] == pytest.approx(0.111, abs=0.01) for row in cache.table.to_pylist())
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert [picture.name for picture in pictures] == ["kept-0.png", "kept-1.png"]
    for picture in pictures:
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or [0] * 999) > 100

    (tmp_path / "ray").mkdir()
    assert "kept tokens are in colour" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    again = run([*command, "--pictures", "0"], tmp_path, {**environment, "RAY_TMPDIR": str(tmp_path / "ray")})
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing was left to do" in again.stdout
    assert "rendering" not in again.stdout
    assert list((tmp_path / "ray").iterdir()) == [], "Ray was started for nothing"


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command as a person would run it."""
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
