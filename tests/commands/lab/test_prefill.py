"""`trio-ray lab prefill` measures every contestant, writes what it prints, and refuses what it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trio_ray.cli import main
from trio_ray.config import ModelConfig
from trio_ray.lab.prefill import unpruned
from trio_ray.lab.prefill.settings import CONTESTANTS
from trio_ray.lab.prefill.stages import STAGES
from trio_ray.model.replica import Replica
from trio_ray.precompute import token_budget


@pytest.mark.slow
def test_all_contestants_in_json_and_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(token_budget.MOST_ROWS, "cpu", 512)  # large batches only take long here
    monkeypatch.setattr(unpruned, "MOST_SAMPLES", 2)
    out = tmp_path / "new" / "out"
    options = ["--shapes", "tiny", "--samples", "7", "--rounds", "2", "--seed", "3"]
    assert main(["lab", "prefill", *options, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    record = json.loads((out / "prefill.json").read_text())
    assert shown.out.startswith((out / "prefill.md").read_text())
    assert f"--set pipeline.token_budget={record['token_budget']}" in shown.out
    assert record["token_budget"] in [trial["token_budget"] for trial in record["token_budget_search"]["trials"]]
    assert record["workload"] | {"name": "pope", "samples": 7, "images": 2} == record["workload"]
    assert record["versions"]["torch"]
    assert record["machine"]["cpus"] >= 1
    results = record["contestants"]
    assert list(results) == list(CONTESTANTS)
    for name, result in results.items():
        assert len(result["seconds"]) == len(record["peak_flops"]["rounds"]) == 2
        assert result["images_per_s"] == pytest.approx(result["samples_per_s"] * 2 / 7)
        assert tuple(result["stages_ms"]) == STAGES
        assert f"| {name} |" in shown.out
        assert 0 < result["share_of_peak"] < 2
    assert results["unpruned"]["times_unpruned"] == 1
    flop = {name: result["flop_per_sample"] for name, result in results.items()}
    assert flop["random"] < flop["trio"] == flop["authors"] < flop["unpruned"]
    assert [name for name, result in results.items() if result["over_random"] is not None] == ["authors", "trio"]
    assert "round 2 of 2: trio-plus" in shown.err


def test_one_contestant_alone_on_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--samples", "3", "--rounds", "1", "--workload", "web", "--contestants", "random", "--budget", "900"]
    assert main(["lab", "prefill", *options, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "prefill.json").read_text())
    assert list(record["contestants"]) == ["random"]
    assert record["contestants"]["random"]["times_unpruned"] is None
    assert (record["token_budget"], record["token_budget_search"]) == (900, None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["prefill.json", "prefill.md"]
    assert "| random |" in capsys.readouterr().out


def test_the_models_folder_is_left_for_a_job(tmp_path: Path) -> None:
    options = ["--shapes", "tiny", "--samples", "1", "--rounds", "1", "--contestants", "random", "--budget", "900"]
    assert main(["lab", "prefill", *options, "--out", str(tmp_path)]) == 0
    assert Replica.load(ModelConfig(name=str(tmp_path / "model"))).decoder.depth == 16


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--shapes", "vicuna-13b"], "--shapes"),
        (["--contestants", "trio", "best"], "--contestants"),
        (["--samples", "0"], "--samples"),
        (["--rounds", "0"], "--rounds"),
        (["--budget", "0"], "--budget"),
        (["--retention", "1"], "--retention"),
        (["--memory-limit", "0"], "--memory-limit"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_its_option(
    options: list[str], field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "prefill", *options, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"trio-ray: {field}: ")
    assert shown.out == ""
    assert not (tmp_path / "out").exists()
