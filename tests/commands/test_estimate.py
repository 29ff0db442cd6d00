"""`trio-ray estimate` prints an estimate and a verdict, and stores nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from trio_ray.cli import main

GIVEN = ["--gpu-tflops", "1", "--efficiency", "0.5"]


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> list[str]:
    """Options that name a job of 12 samples."""
    tar = write_tar(tmp_path / "a.tar", samples(12))
    return [
        "--input", str(tar), "--output", str(tmp_path / "cache"), "--model", str(tiny_model),
        "--set", "method.retention=0.3", "--set", "cache.part_samples=4", "--set", "model.dtype=float32",
    ]  # fmt: skip


def test_an_estimate_ends_with_its_verdict_and_leaves_nothing(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = ["--gpu-price", "2"]
    record = tmp_path / "estimate.json"
    options = [*GIVEN, *prices, "--bandwidth", "100", "--codecs", "raw", "int4", "--json", str(record)]
    assert main(["estimate", *job, *options]) == 0
    printed = capsys.readouterr().out
    assert "12 samples in 1 shards" in printed
    assert "no price given for storage" in printed
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 6
    assert max(map(len, rows)) <= 100, "it fits a terminal"
    assert "restoring: as measured on one H200" in printed
    assert printed.strip().splitlines()[-1].startswith(("store ", "recompute: "))
    found = json.loads(record.read_text())
    assert found["verdict"] == printed.strip().splitlines()[-1]
    assert [(choice["level"], choice["codec"]) for choice in found["choices"]] == [
        ("indices", None), ("embeds", None), ("kv", "raw"), ("kv", "int4"),
    ]  # fmt: skip
    assert not (tmp_path / "cache").exists()


def test_where_reading_is_slower_it_says_recompute(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *job, "--gpu-tflops", "1000", "--efficiency", "1", "--bandwidth", "0.000001"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("recompute: a pruned prefill takes")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--gpu-tflops"), (["--gpu-tflops", "1"], "--gpu-tflops"), (["--measure", *GIVEN], "--measure"),
        (["--gpu-tflops", "1", "--efficiency", "1.5"], "--efficiency"), ([*GIVEN, "--samples", "0"], "--samples"),
        ([*GIVEN, "--bandwidth", "0"], "--bandwidth"), ([*GIVEN, "--gpu-price", "-1"], "--gpu-price"),
        ([*GIVEN, "--codecs", "zip"], "--codecs"), ([*GIVEN, "--set", "input=[]"], "input"),
        ([*GIVEN, "--replicas", "0"], "--replicas"), ([*GIVEN, "--json", "/nowhere/at/all/estimate.json"], "--json"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_estimated_is_named(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", "--set", f"input=[{write_tar(tmp_path / 'a.tar', samples(1))}]", *options]) == 2
    assert words in capsys.readouterr().err
