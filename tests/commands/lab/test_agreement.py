"""`trio-ray lab agreement` runs the model in every way that this machine can, and names the ways that it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trio_ray.cli import main
from trio_ray.lab.agreement import WAYS

QUESTIONS = 2


@pytest.mark.slow
def test_every_way_that_runs_here_is_compared_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches do not change what float32 keeps or says; bfloat16 may choose otherwise where it is not sure."""
    assert main(["lab", "agreement", "--questions", str(QUESTIONS), "--out", str(tmp_path / "out")]) == 0
    printed, told = capsys.readouterr()
    record = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert record["questions"] == QUESTIONS
    ways = {way["way"]: way for way in record["ways"]}
    assert {*ways, *record["skipped"]} == {str(way) for way in WAYS}
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert lines == record["ways"]  # each way was told, so that a run that is cut off has not been for nothing
    shares = {name: value for way in ways.values() for name, value in way.items() if name != "way"}
    assert all(0 <= value <= 1 for value in shares.values())
    assert len(shares) == 7
    for name in ("float32 sdpa, batches of 64", "float32 sdpa, batches of 1"):
        found = ways[name]
        assert {found[f"{what}_first"] for what in ("kept_early", "kept_late", "answers")} == {1.0}
        assert found["right"] >= 1 / QUESTIONS
    first_of_bfloat16 = ways["bfloat16 sdpa, batches of 64"]
    assert {first_of_bfloat16[f"{what}_dtype"] for what in ("kept_early", "kept_late", "answers")} == {1.0}
    assert first_of_bfloat16["kept_early_first"] > 0.5
    assert (tmp_path / "out" / "agreement.md").read_text().strip() in printed
    for way, reason in record["skipped"].items():
        assert f"not run: {way}: {reason}" in printed
        assert reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--questions", "0"], "--questions: 0 must be at least 1"),
        (["--questions", "1", "--model", "/no/such/model"], "model.name: there is no folder '/no/such/model'"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_named(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is not there is one error, not a way that cannot run for each of them."""
    assert main(["lab", "agreement", *options, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"trio-ray: {words}")
    assert len(shown.err.splitlines()) == 1
    assert list((tmp_path / "out").glob("*")) == []
