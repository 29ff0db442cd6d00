"""`trio-ray lab fidelity` does its three studies and writes them down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from trio_ray.cli import main
from trio_ray.lab.fidelity.study import STUDIED


@pytest.mark.slow
def test_three_studies_in_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--questions", "3", "--batch", "2", "--retention", "0.222", "--share", "0.2", "--first-seed", "90"]
    assert main(["lab", "fidelity", *options, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "fidelity.json", "fidelity.md", "fidelity.png"
    ]  # fmt: skip
    found = json.loads((tmp_path / "out" / "fidelity.json").read_text(), parse_constant=_no_constant)
    assert {(record["selector"], record["depth"]) for record in found["divergence"]} == {
        (name, depth) for name in STUDIED for depth in range(16)
    }
    assert [record["depth"] for record in found["agreement"]] == list(range(16))
    for record in found["divergence"] + found["agreement"]:
        assert all(len(value) == 3 for value in record.values() if isinstance(value, list))
    assert [record["method"] for record in found["detail"]] == ["all tokens", *STUDIED]
    assert found["detail"][0]["fine_questions"] + found["detail"][0]["coarse_questions"] == 3
    assert shown.startswith((tmp_path / "out" / "fidelity.md").read_text())
    with Image.open(tmp_path / "out" / "fidelity.png") as picture:
        assert picture.format == "PNG"


def _no_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("option", [["--share", "0"], ["--retention", "1.5"], ["--questions", "0"]])
def test_what_cannot_be_studied_is_refused_by_its_option(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "fidelity", *option]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"trio-ray: {option[0]}: ")
    assert shown.out == ""
