"""`trio-ray lab job` runs whole jobs on real Ray, says what they made, and leaves none of it behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trio_ray.cli import main
from trio_ray.lab.jobs import corpus as job_corpus
from trio_ray.lab.jobs import whole_job

SHARDS, PER_SHARD, PARTS = 2, 6, 3


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images and samples than on a GPU."""
    monkeypatch.setattr(whole_job, "BARE_SAMPLES", 3)
    monkeypatch.setattr(job_corpus, "IMAGES", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("small", "cluster")
def test_a_job_is_run_counted_and_held_against_the_bare_replica(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, output = tmp_path / "out", tmp_path / "store"
    options = [
        "--shards", str(SHARDS), "--per-shard", str(PER_SHARD), "--runs", "1:int4", "1:auto",
        "--set", "cache.codec=int4",
        "--set", f"cache.part_samples={PER_SHARD // PARTS}", "--set", "pipeline.token_budget=1000",
    ]  # fmt: skip
    assert main(["lab", "job", *options, "--output", str(output), "--out", str(out)]) == 0
    shown = capsys.readouterr()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record: dict[str, Any] = json.loads((out / "job.json").read_text(), parse_constant=refuse)
    run, auto = record["runs"]
    assert run["samples"] == auto["samples"] == SHARDS * PER_SHARD
    assert (run["replicas"], run["codec"], run["lost"]) == (1, "int4", 0)
    for kind, share in (("samples_per_s", "times_bare"), ("coding_samples_per_s", "times_bare_coding")):
        rates = record["bare"][kind]
        assert len(rates) == 3
        assert min(rates) > 0
        assert run[share] == pytest.approx(run["samples_per_s"] / sorted(rates)[1])
    assert run["busy"] > 0  # a few parts come as one, soon after their batches, so it may be above 1
    assert run["busy_by_replica"] == [run["busy"]]
    assert 0 < run["all_ready_s"] < run["begun_s"] < run["seconds"]
    assert run["parts"] == SHARDS * PARTS
    # One replica: from its first part to its last, so all parts but one.
    stored = (SHARDS * PARTS - 1) * PER_SHARD // PARTS
    assert run["samples_per_s"] * run["steady_s"] == pytest.approx(stored)
    assert run["bytes_per_sample"] == pytest.approx(run["bytes_per_s"] / run["samples_per_s"])
    assert run["bytes_per_sample"] > 10_000
    assert run["device_ms_per_sample"] > 0
    assert run["tail_s"] == 0
    assert (record["config"]["model"]["name"], record["per_shard"]) == ("bundled", PER_SHARD)
    assert not {"input", "output", "s3"} & set(record["config"])

    # So few samples are too few for a basis, so that auto is raw; the bare replica coded with int4, which auto is not.
    assert (auto["codec"], auto["times_bare_coding"]) == ("auto", None)
    assert auto["bytes_per_sample"] > 1.5 * run["bytes_per_sample"]

    table = (out / "job.md").read_text()
    assert table in shown.out
    assert re.search(rf"^\| 1 \| int4 \| {SHARDS * PER_SHARD} \| {run['samples_per_s']:.1f} \| ", table, re.MULTILINE)
    assert [file for file in output.rglob("*") if file.is_file()] == []
    assert len(list((out / "corpus").iterdir())) == SHARDS
    assert "job on 1 replicas, codec auto" in shown.err


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_run_that_fails_loses_nothing_of_what_was_measured_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, output = tmp_path / "out", tmp_path / "store"
    output.write_text("no folder")
    options = ["--shards", "1", "--per-shard", "1", "--runs", "1:raw", "1:int8", "--set", "cache.codec=raw"]
    assert main(["lab", "job", *options, "--output", str(output), "--out", str(out)]) == 4
    shown = capsys.readouterr()
    assert "trio-ray: 2 of the runs failed, the first: output: " in shown.err
    record = json.loads((out / "job.json").read_text())
    assert [run["codec"] for run in record["runs"] if run["failed"].startswith("output: ")] == ["raw", "int8"]
    assert min(record["bare"]["coding_samples_per_s"]) > 0
    assert "1 replicas, codec int8: FAILED, output: " in (out / "job.md").read_text()
    assert "Bare replica: " in shown.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shapes", "vicuna-13b"], "--shapes: 'vicuna-13b'"), (["--shards", "0"], "--shards: "),
        (["--per-shard", "0"], "--per-shard: "), (["--runs", "0"], "--runs: '0'"),
        (["--runs", "1", "two"], "--runs: 'two'"), (["--runs", "2:"], "--runs: '2:'"),
        (["--runs", "1:zip"], "--runs: '1:zip': name 'zip'"), (["--runs", "1:{name: int, keys: 1}"], "--runs: "),
        (["--runs", "1:{name"], "--runs: "), (["--set", "method.retention=2"], "method.retention: "),
        (["--config", "/no/such.yaml"], "--config: "),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_named_before_anything_is_written(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "job", *options, "--output", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"trio-ray: {words}")
    assert len(shown.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_a_bare_replica_that_fails_is_said_with_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--per-shard", "1", "--shards", "1", "--runs", "1:raw", "--set", "model.attention=fa3"]
    assert main(["lab", "job", *options, "--output", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) == 4
    shown = capsys.readouterr()
    assert "trio-ray: the bare replica ended with 1: " in shown.err
    assert "fa3 cannot be used" in shown.err
