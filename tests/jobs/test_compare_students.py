"""`python -m jobs.compare_students` refuses what it cannot write to before it computes anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.compare_students import main


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["compare_students", "--out", str(tmp_path / "file")])
    assert main() == 2
    assert capsys.readouterr().err.startswith("compare_students: --out: ")
