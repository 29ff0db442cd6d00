"""`trio-ray bench-codecs` prints a table, writes the same as JSON, and refuses what it cannot measure by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trio_ray.cli import main
from trio_ray.estimate.made_up_states import GEOMETRIES


def test_a_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["raw", "{name: int2, sinks: 8}"]
    command = ["bench-codecs", "--shapes", "bundled", "--rounds", "1", "--codecs", *asked, "--out", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "codecs.md").read_text().strip() in printed
    results = json.loads((tmp_path / "codecs.json").read_text())
    assert [codec["codec"] for codec in results["codecs"]] == asked
    assert results["codecs"][1]["to_unpruned"] > results["codecs"][0]["to_unpruned"] > 3


def test_the_transform_is_measured_with_a_basis_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(GEOMETRIES["bundled"], kv_heads=2, least=60, most=120)
    monkeypatch.setitem(GEOMETRIES, "bundled", small)
    asked = ["int4", "{name: transform, ratio: 5, group_layers: 1}"]
    command = ["bench-codecs", "--shapes", "bundled", "--rounds", "1", "--codecs", *asked, "--out", str(tmp_path)]
    assert main(command) == 0
    assert "basis fitted to made-up states" in capsys.readouterr().out.splitlines()[0]
    plain, fitted = json.loads((tmp_path / "codecs.json").read_text())["codecs"]
    assert plain["basis"] is None
    assert fitted["basis"] > 10_000
    assert fitted["to_pruned"] == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--codecs", "zip"], "--codecs: name 'zip'"), (["--codecs", "{name: int2, speed: 1}"], "speed"),
        (["--codecs", "{name: transform, ratio: 1}"], "ratio"), (["--codecs", "[1"], "--codecs"),
        (["--rounds", "0"], "--rounds"), (["--samples", "0"], "--samples"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_measured_is_named(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-codecs", *options]) == 2
    assert words in capsys.readouterr().err
