"""`trio-ray precompute` refuses in one line, by exit code, what cannot run; and the help of every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cli import main
from trio_ray.model.replica import Replica


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return str(write_tar(tmp_path / "a.tar", samples(2)))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--retention", "0"], "method.retention"),
        (["--retention", "2"], "method.retention"),
        (["--set", "method.retentio=0.5"], "method.retentio"),
        (["--set", "method.prune_points=[1, 2, 99]"], "method.prune_points"),
        (["--set", "method={keep: [3, 2], prune_points: [1]}"], "method.keep"),
        (["--model", "/no/such/model"], "model.name"),
        (["--output", "/proc/no/cache"], "output"),
        (["--input", "/no/such/*.tar"], "input"),
        (["--config", "/no/such/job.yaml"], "--config"),
    ],
)
def test_what_cannot_run_ends_with_code_2_and_one_line_that_names_the_field(
    corpus: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], field: str
) -> None:
    base = ["precompute", "--input", corpus, "--output", str(tmp_path / "cache"), "--model", str(tiny_model)]
    assert main([*base, *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    phases, sentence = shown.err.splitlines()[:-1], shown.err.splitlines()[-1]
    assert sentence.startswith(f"trio-ray: {field}: ")
    assert phases in ([], ["checking"]), "settings are refused before the model, the input and the output are looked at"


def test_a_cache_of_other_settings_ends_with_code_3_and_the_field(
    corpus: str, tiny_model: Path, tmp_path: Path, llama: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(job_config(tiny_model, corpus, tmp_path / "cache"), llama)
    base = ["precompute", "--input", corpus, "--output", str(tmp_path / "cache"), "--model", str(tiny_model)]
    assert main([*base, "--set", "model.dtype=float32", "--retention", "0.6"]) == 3
    error = capsys.readouterr().err
    assert "method.retention = 0.3, but this run has 0.6" in error
    assert len(error.splitlines()) == 2, "the phase, and one sentence"


def test_a_finished_job_ends_with_code_0_and_says_so(
    corpus: str, tiny_model: Path, tmp_path: Path, llama: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(job_config(tiny_model, corpus, tmp_path / "cache"), llama)
    file = tmp_path / "job.yaml"
    file.write_text(f"input: {corpus}\noutput: {tmp_path / 'cache'}\nmodel: {{name: {tiny_model}, dtype: float32}}\n")
    assert main(["precompute", "--config", str(file), "--retention", "0.3"]) == 0
    assert "nothing was left to do" in capsys.readouterr().out
