"""A dry run says what a job would do and take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from trio_ray.cli import main
from trio_ray.estimate import preview


def test_a_dry_run_tells_shards_samples_bytes_and_hours_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "MEASURED_S", 0.01)
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", samples(8, first=10 * number))
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere")
    inputs = [str(tmp_path / f"{name}.tar") for name in (0, 1, 2, "gone")]
    command = ["precompute", "--dry-run", "--model", str(tiny_model), "--output", str(tmp_path / "cache"), "--input"]
    assert main([*command, *inputs]) == 0
    shown = capsys.readouterr().out
    assert f"would make the new cache {tmp_path}/cache" in shown
    assert "shards: 4, of which 0 are complete and 3 have work left" in shown
    assert re.search(r"would FAIL \S+gone\.tar: ", shown)
    assert re.search(r"expected: about \d+ samples and [\d.]+ [kMG]B, \S+ hours of replicas", shown)
    assert shown.endswith("nothing was written\n")
    assert not (tmp_path / "cache").exists()
