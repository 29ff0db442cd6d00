"""`trio-ray calibrate`: from a corpus to a basis that a job can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.calibration import schedule_search
from trio_ray.cli import main
from trio_ray.config import JobConfig, load_section
from trio_ray.kv.codecs.transform_basis import read_basis
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.model.loading import model_fingerprint

DEFAULTS = schedule_search.search_schedule.__kwdefaults__


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three shards of validation scenes, a question each, broken samples among them."""
    folder = tmp_path_factory.mktemp("calibration")
    write_corpus(folder, scenes=50, samples_per_shard=20, broken=True, split="validation", questions_per_image=1)
    return f"{folder}/*.tar"


def calibrate(corpus: str, model: Path, out: Path, *more: str) -> int:
    return main(
        ["calibrate", "--input", corpus, "--model", str(model), "--retention", "0.5", "--samples", "12",
         "--set", "model.dtype=float32", "--out", str(out), *more]
    )  # fmt: skip


def test_a_basis_of_the_model_and_its_prune_points_is_written_and_reported(
    corpus: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(corpus, tiny_model, tmp_path / "basis", "--step", "0.0001") == 0
    basis = read_basis((tmp_path / "basis").read_bytes())
    assert basis.model == model_fingerprint(tiny_model)
    assert basis.notes["samples"] == 12
    said = capsys.readouterr().out
    assert "3 held-out samples" in said
    assert "times smaller" in said


def test_the_same_samples_give_the_same_basis(corpus: str, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert calibrate(corpus, tiny_model, tmp_path / name, "--divergence", "0.1") == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_searched_schedule_is_written_as_settings_of_a_job(
    corpus: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_search, "CANDIDATES", 4)
    monkeypatch.setattr(schedule_search.search_schedule, "__kwdefaults__", {**DEFAULTS, "candidates": 4})
    found = tmp_path / "schedule.yaml"
    options = ["calibrate", "--input", corpus, "--model", str(tiny_model), "--retention", "0.5", "--samples", "16"]
    assert main([*options, "--set", "model.dtype=float32", "--schedule", str(found)]) == 0
    config = load_section(JobConfig, str(found))
    assert config.method.retention == 0.5
    assert config.method.prune_points is not None
    assert f"prune points {list(config.method.prune_points)}" in capsys.readouterr().out


def test_a_ratio_is_met(corpus: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(corpus, tiny_model, tmp_path / "basis", "--ratio", "2") == 0
    ratio = float(capsys.readouterr().out.split(" times smaller")[0].split()[-1])
    assert 2 <= ratio < 3


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--samples", "2"], "--samples"),
        (["--step", "0"], "--step"),
        (["--ratio", "-1"], "--ratio"),
        (["--divergence", "-0.1"], "--divergence"),
        (["--rank", "0"], "--rank"),
        (["--group-layers", "0"], "--group-layers"),
        (["--set", "cache.level=indices"], "cache"),
        (["--out", "/nowhere/at/all/basis"], "--out"),
        (["--input", "/nowhere/*.tar"], "input"),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    corpus: str, tiny_model: Path, tmp_path: Path, more: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(corpus, tiny_model, tmp_path / "basis", *more) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "basis").exists()


def test_what_is_measured_stays_within_the_divergence_that_is_wanted(
    corpus: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    for wanted in ("0.01", "0.5"):
        assert calibrate(corpus, tiny_model, tmp_path / "basis", "--samples", "40", "--divergence", wanted) == 0
        said = capsys.readouterr().out
        assert 0 < float(said.split("divergence ")[1].split()[0]) <= float(wanted)
        sizes.append((tmp_path / "basis").stat().st_size)
    assert sizes[0] > sizes[1]


def test_a_divergence_that_so_few_components_cannot_keep_to_is_refused(
    corpus: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(corpus, tiny_model, tmp_path / "basis", "--divergence", "1e-9", "--rank", "2") == 2
    assert "--divergence" in capsys.readouterr().err


def test_a_ratio_that_cannot_be_reached_is_refused(
    corpus: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(corpus, tiny_model, tmp_path / "basis", "--ratio", "1e9") == 2
    assert "--ratio" in capsys.readouterr().err
