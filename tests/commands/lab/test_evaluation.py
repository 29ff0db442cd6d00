"""`trio-ray lab evaluation` makes a cache and answers it as a job on real Ray, beside the bare engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cli import main
from trio_ray.lab.jobs import corpus as job_corpus

SHARDS, PER_SHARD = 2, 4


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_evaluation_is_run_and_held_against_the_bare_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_corpus, "IMAGES", 2)
    out, output = tmp_path / "out", tmp_path / "cache"
    options = [
        "--shapes", "tiny", "--shards", str(SHARDS), "--per-shard", str(PER_SHARD), "--tokens", "3", "--chunk", "3",
        "--set", "cache.codec=int4", "--set", "pipeline.token_budget=1000",
    ]  # fmt: skip
    assert main(["lab", "evaluation", *options, "--output", str(output), "--out", str(out)]) == 0
    record: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    (found,) = record["rounds"]
    assert len(found["bare"]["answers_per_s"]) == 2
    assert min(found["bare"]["answers_per_s"]) > 0
    (run,) = found["runs"]
    assert (run["replicas"], run["answers"]) == (1, SHARDS * PER_SHARD)
    assert run["answers_per_s"] == pytest.approx(run["answers"] / (run["last_answer_s"] - run["all_ready_s"]))
    assert run["last_answer_s"] < run["whole_s"]
    assert len(PrunedCache(str(output))) == SHARDS * PER_SHARD, "the cache is kept"
    answers = [json.loads(line) for line in (out / "answers" / "answers.jsonl").read_text().splitlines()]
    assert len({line["question_id"] for line in answers}) <= len(answers) == SHARDS * PER_SHARD
    assert f"| 1 | {SHARDS * PER_SHARD} | {run['answers_per_s']:.1f} | " in (out / "evaluation.md").read_text()
    assert (out / "evaluation.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--shapes", "vicuna-13b"], "--shapes: 'vicuna-13b'"), (["--replicas", "0"], "--replicas: ")],
    ids=str,
)
def test_what_cannot_be_run_is_named_before_anything_is_written(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "evaluation", *options, "--output", str(tmp_path / "c"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"trio-ray: {words}")
    assert list(tmp_path.iterdir()) == []
