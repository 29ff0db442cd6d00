"""`trio-ray lab accuracy` measures, prints and writes the same numbers, and refuses what it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from trio_ray.calibration import schedule_search
from trio_ray.cli import main
from trio_ray.lab.accuracy.methods import methods
from trio_ray.lab.scenes.corpus import write_corpus


def test_table_json_and_plot_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    options = ["--questions", "8", "--methods", "trio", "visionzip, then trio", "--retentions", "1", "0.222"]
    assert main(["lab", "accuracy", *options, "--batch", "3", "--first-seed", "70", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    records = json.loads((out / "accuracy.json").read_text())
    assert [(record["method"], record["retention"]) for record in records] == [
        ("all tokens", 1.0), ("trio", 0.222), ("visionzip, then trio", 0.222)
    ]  # fmt: skip
    assert all(record["questions"] == 8 for record in records)
    assert records[0]["accuracy"] >= 7 / 8
    for record in records[1:]:
        assert record["tokens"] == pytest.approx(0.222 * records[0]["tokens"], abs=1)
    table = (out / "accuracy.md").read_text()
    assert shown.out.startswith(table)
    assert f"**{100 * records[1]['accuracy']:.1f}**" in table
    assert "8 questions, 3 settings, " in shown.out
    assert "questions 8/8" in shown.err
    with Image.open(out / "accuracy.png") as picture:
        assert picture.format == "PNG"
    assert sorted(file.name for file in out.iterdir()) == ["accuracy.json", "accuracy.md", "accuracy.png"]


def test_questions_of_an_input_are_asked_behind_images(tmp_path: Path) -> None:
    """The corpus's own answers decide what is right."""
    write_corpus(tmp_path, scenes=10, samples_per_shard=40, split="validation", questions_per_image=2)
    out = tmp_path / "out"
    options = ["--input", str(tmp_path / "*.tar"), "--scope", "image", "--questions", "4", "--retentions", "1", "0.2"]
    options += ["--methods", "uniform", "--layout", "uniform", "--set", "method={selector: random, full_depth: 1.0}"]
    assert main(["lab", "accuracy", *options, "--out", str(out)]) == 0
    whole, uniform, own = json.loads((out / "accuracy.json").read_text())
    assert (own["method"], own["of_real"]) == ("as set", pytest.approx(0.2, abs=0.01))
    assert whole["accuracy"] == 1.0
    assert uniform["questions"] == 4
    assert uniform["of_real"] == pytest.approx(0.2, abs=0.01)
    assert uniform["by_group"] == {}


def test_where_the_search_chooses_the_depth_only_searched_rows_are_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(schedule_search, "DEPTHS", (1.0,))
    options = ["--questions", "4", "--retentions", "1", "0.2", "--methods", "trio", "--auto", "12"]
    assert main(["lab", "accuracy", *options, "--full-depth", "auto", "--out", str(tmp_path)]) == 0
    assert [row["method"] for row in json.loads((tmp_path / "accuracy.json").read_text())] == [
        "all tokens",
        "trio, auto",
    ]
    assert "full_depth 1, chosen from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--methods", "trio", "best"], "--methods"),
        (["--set", "method.schedule=auto"], "method.schedule"),
        (["--set", "method.tokens=20"], "method.tokens"),
        (["--retentions", "0.5", "2"], "--retentions"),
        (["--retentions", "0"], "--retentions"),
        (["--questions", "0"], "--questions"),
        (["--full-depth", "auto"], "--full-depth"),
        (["--full-depth", "deep"], "--full-depth"),
        (["--scenes", "photographs"], "--scenes"),
        (["--questions", "1", "--model", "/no/such/model"], "model.name"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line_that_names_the_option(
    options: list[str], field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "accuracy", *options, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"trio-ray: {field}: ")
    assert len(shown.err.splitlines()) == 1
    assert list((tmp_path / "out").glob("*")) == []


def test_an_unknown_method_is_answered_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "accuracy", "--methods", "best"]) == 2
    error = capsys.readouterr().err
    assert "'best'" in error
    assert all(name in error for name in methods())
