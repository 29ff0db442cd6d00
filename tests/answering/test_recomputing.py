"""Answers from a cache are those of its images pruned anew; where they are not, it is said which."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jobs import compare_answers
from tests.corpora import sample, samples, write_tar
from tests.pipeline.runs import job_config, run_here
from trio_ray.config import JobConfig
from trio_ray.model.replica import Replica


@pytest.fixture
def job(tmp_path: Path, model_folders: dict[str, Path], llama: Replica) -> JobConfig:
    """Of two shards with the same keys and a bad sample each."""
    tars = [write_tar(tmp_path / f"{name}.tar", [*samples(5 + n), sample(9, png=b"")]) for n, name in enumerate("ab")]
    config = job_config(model_folders["llama"], [str(tar) for tar in tars], tmp_path / "cache")
    run_here(config, llama)
    return config


def ended(config: JobConfig, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    settings = {
        "input": list(config.input), "output": config.output, "model.name": config.model.name,
        "method.retention": config.method.retention,
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    monkeypatch.setattr(sys, "argv", ["compare_answers", *options, *more])
    return compare_answers.main()


def test_the_answers_are_equal_and_both_ways_are_timed(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(job, monkeypatch, "--max-new-tokens", "5") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["questions"] == found["equal"] == 11
    assert found["from_the_cache_s"] > 0
    assert found["recomputed_s"] > 0
    assert found["read_bytes"] > 11_000


def test_another_selection_shows_in_the_answers_by_name(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(job, monkeypatch, "--set", "method.selector=random", "--set", "method.retention=0.1") == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["equal"] < found["questions"] == 11
    assert "s000" in shown.err


def test_a_cache_without_prefixes_is_refused(
    tmp_path: Path, model_folders: dict[str, Path], llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(3))
    config = job_config(model_folders["llama"], tar, tmp_path / "cache", cache__level="indices")
    run_here(config, llama)
    assert ended(config, monkeypatch) == 2
