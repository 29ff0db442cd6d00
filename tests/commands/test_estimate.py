"""`trio-ray estimate` prints an estimate and a verdict, stores nothing, and holds itself against what the job did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cli import main
from trio_ray.model.replica import Replica

GIVEN = ["--gpu-tflops", "1", "--efficiency", "0.5"]


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> list[str]:
    """Options that name a job of 12 samples."""
    tar = write_tar(tmp_path / "a.tar", samples(12))
    return [
        "--input", str(tar), "--output", str(tmp_path / "cache"), "--model", str(tiny_model),
        "--set", "method.retention=0.3", "--set", "cache.part_samples=4", "--set", "model.dtype=float32",
    ]  # fmt: skip


def test_a_plan_ends_with_its_verdict_and_leaves_nothing(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = ["--gpu-price", "2", "--put-price", "0.005", "--get-price", "0.0004"]
    record = tmp_path / "plan.json"
    options = [*GIVEN, *prices, "--bandwidth", "100", "--codecs", "raw", "int4", "--json", str(record)]
    assert main(["estimate", *job, *options]) == 0
    printed = capsys.readouterr().out
    assert "12 samples in 1 shards" in printed
    assert "no price given for storage" in printed
    assert printed.strip().splitlines()[-1].startswith(("store ", "recompute: "))
    plan = json.loads(record.read_text())
    assert plan["verdict"] == printed.strip().splitlines()[-1]
    assert [(choice["level"], choice["codec"]) for choice in plan["choices"]] == [
        ("indices", None), ("embeds", None), ("kv", "raw"), ("kv", "int4"),
    ]  # fmt: skip
    assert not (tmp_path / "cache").exists()


def test_where_reading_is_slower_it_says_recompute(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *job, "--gpu-tflops", "1000", "--efficiency", "1", "--bandwidth", "0.000001"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("recompute: a pruned prefill takes")


def test_compare_puts_the_jobs_numbers_beside_the_plans(
    job: list[str], tiny_model: Path, llama: Replica, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *job, *GIVEN, "--compare"]) == 2
    assert "trio-ray:" in capsys.readouterr().err
    run_here(job_config(tiny_model, tmp_path / "a.tar", tmp_path / "cache"), llama)
    assert main(["estimate", *job, *GIVEN, "--compare"]) == 0
    assert "| samples stored | 12  | 12  | +0.0 % |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--gpu-tflops"), (["--gpu-tflops", "1"], "--gpu-tflops"), (["--measure", *GIVEN], "--measure"),
        (["--gpu-tflops", "1", "--efficiency", "1.5"], "--efficiency"), ([*GIVEN, "--samples", "0"], "--samples"),
        ([*GIVEN, "--bandwidth", "0"], "--bandwidth"), ([*GIVEN, "--gpu-price", "-1"], "--gpu-price"),
        ([*GIVEN, "--codecs", "zip"], "--codecs"), ([*GIVEN, "--set", "input=[]"], "input"),
        ([*GIVEN, "--replicas", "0"], "--replicas"), ([*GIVEN, "--json", "/nowhere/at/all/plan.json"], "--json"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_planned_is_named(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", "--set", f"input=[{write_tar(tmp_path / 'a.tar', samples(1))}]", *options]) == 2
    assert words in capsys.readouterr().err
