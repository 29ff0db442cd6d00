"""Trying first: a trial has a cache of its own, and a preview writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.corpora import sample, samples, write_jsonl, write_tar
from tests.precompute.runs import account, job_config, run_here
from trio_ray.config import JobConfig
from trio_ray.errors import IdentityMismatch
from trio_ray.model.replica import Replica
from trio_ray.precompute.job import run_job
from trio_ray.precompute.plan import preview_job
from trio_ray.store.commit_table import read_commits
from trio_ray.store.local import LocalStore


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Eight tars and a file of rows that is cut into three shards."""
    tars = [write_tar(tmp_path / "in" / f"{number}.tar", samples(6, first=10 * number)) for number in range(8)]
    rows = write_jsonl(tmp_path / "in" / "rows.jsonl", samples(9, first=100))
    return [*map(str, tars), str(rows)]


def config_of(model: Path, corpus: list[str], tmp_path: Path, **settings: Any) -> JobConfig:
    return job_config(model, corpus, tmp_path / "cache", source__rows_per_shard=3, **settings)


def test_a_trial_takes_samples_from_all_over_the_input_and_leaves_the_output_alone(
    corpus: list[str], tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    trial = config_of(tiny_model, corpus, tmp_path, pipeline__limit=10).as_run
    assert trial.output.startswith(f"{tmp_path}/cache-trial-10-")
    run_here(trial, llama)
    found = account(LocalStore(trial.output))
    assert len(found.keys) == 10
    files = {Path(commit.shard.uri).name for commit in read_commits(LocalStore(trial.output), 2)}
    assert len(files) == 4
    assert "rows.jsonl" in files, "also of the last file"
    assert not (tmp_path / "cache").exists()
    assert run_job(config_of(tiny_model, corpus, tmp_path, pipeline__limit=10)).shards_before == 4


def test_other_settings_are_another_trial(corpus: list[str], tmp_path: Path, tiny_model: Path) -> None:
    others: list[dict[str, Any]] = [{"method__retention": 0.5}, {"cache__codec": "int8"}, {"source__turns": "each"}]
    trials = [config_of(tiny_model, corpus, tmp_path, pipeline__limit=10, **given).as_run for given in [{}, *others]]
    outputs = {trial.output for trial in trials}
    assert len(outputs) == 4
    assert config_of(tiny_model, corpus, tmp_path).as_run.output == str(tmp_path / "cache")


def test_a_preview_finds_what_is_left_and_writes_nothing(
    corpus: list[str], tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    config = config_of(tiny_model, corpus, tmp_path)
    plan, is_new = preview_job(config, with_gpu=False)
    assert (is_new, len(plan.tasks), len(plan.complete)) == (True, 11, 0)
    assert not (tmp_path / "cache").exists()

    run_here(config_of(tiny_model, corpus[:2], tmp_path), llama)
    write_tar(Path(corpus[0]), [sample(77)])  # other content
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    plan, is_new = preview_job(config, with_gpu=False)
    assert (is_new, len(plan.tasks), len(plan.complete)) == (False, 9, 1)
    assert "has changed" in plan.lost[0][1]
    with pytest.raises(IdentityMismatch, match=r"method\.retention"):
        preview_job(config_of(tiny_model, corpus, tmp_path, method__retention=0.5), with_gpu=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before
