"""`trio-ray lab decode` times the first and the last steps beside the limit, and writes what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trio_ray.cli import main


@pytest.mark.slow
def test_steps_of_each_batch_size_in_json_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "decode", "--sequences", "1", "3", "--steps", "64", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == (tmp_path / "decode.md").read_text()
    record = json.loads((tmp_path / "decode.json").read_text())
    assert [row["sequences"] for row in record["steps"]] == [1, 3]
    for row in record["steps"]:
        assert row["steps"] == 64
        assert 0 < row["first_limit_ms"] < row["last_limit_ms"], "keys and values grow"
        assert min(row["first_ms"], row["last_ms"]) > 0
    one, three = record["steps"]
    assert three["first_limit_ms"] > one["first_limit_ms"]


def test_unknown_shapes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "decode", "--shapes", "gpt", "--out", str(tmp_path)]) == 2
    assert "--shapes: 'gpt' is none of" in capsys.readouterr().err
