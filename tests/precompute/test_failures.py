"""Input that cannot be processed is recorded, and forgotten when it can."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from tests.corpora import samples, write_jsonl, write_tar
from tests.precompute.contract import assert_follows_the_contract
from tests.precompute.runs import job_config, run_here
from trio_ray.config import JobConfig
from trio_ray.errors import StoreError
from trio_ray.model.replica import Replica
from trio_ray.precompute import job
from trio_ray.precompute.job import run_job
from trio_ray.store.commit_table import CommitTable, read_commits
from trio_ray.store.failures import read_failures
from trio_ray.store.local import LocalStore
from trio_ray.store.objects import ObjectStore


@pytest.fixture
def finished(tmp_path: Path, tiny_model: Path, llama: Replica) -> JobConfig:
    """A job whose input is all in the cache: a tar, and a JSONL file of two shards."""
    members = [*samples(3), {"__key__": "bad", "png": b""}]
    inputs = [write_tar(tmp_path / "in" / "a.tar", members), write_jsonl(tmp_path / "in" / "b.jsonl", samples(6))]
    config = job_config(tiny_model, [str(file) for file in inputs], tmp_path / "cache", source__rows_per_shard=4)
    run_here(config, llama)
    return config


def test_a_file_that_is_away_is_recorded_by_the_run_and_forgotten_when_it_is_back(
    finished: JobConfig, tmp_path: Path
) -> None:
    store, file = LocalStore(tmp_path / "cache"), Path(finished.input[1])
    away = file.rename(tmp_path / "away")
    summary = run_job(finished)
    assert list(summary.failed) == [str(file)]
    assert (summary.ok, summary.shards, summary.shards_before, summary.parts) == (False, 2, 1, 0)
    (record,) = read_failures(store).values()
    assert (record.shard.uri, record.shard.size, record.shard.etag) == (str(file), -1, "")
    assert_follows_the_contract(store)

    away.rename(file)
    summary = run_job(finished)
    assert (summary.ok, summary.shards, summary.shards_before) == (True, 3, 3)
    assert read_failures(store) == {}
    assert not ray.is_initialized()


def test_each_shard_of_a_changed_file_is_named_with_its_rows(finished: JobConfig) -> None:
    file = Path(finished.input[1])
    write_jsonl(file, samples(5))
    summary = run_job(finished)
    assert list(summary.failed) == [f"{file} rows 0..3", f"{file} rows 4..4"]
    assert "write this version to another output" in str(summary)
    assert len(read_failures(LocalStore(finished.output))) == 2


def test_a_run_leaves_copies_of_the_commit_records(finished: JobConfig) -> None:
    assert run_job(finished).ok
    store = LocalStore(finished.output)
    commits = read_commits(store, 2)
    assert commits.catalog.parts == len(commits) > 0
    assert_follows_the_contract(store)


def test_what_the_cache_can_do_without_does_not_end_a_run(
    finished: JobConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slowed_down(store: ObjectStore, commits: CommitTable, threads: int) -> int:
        raise StoreError(store.uri, "SlowDown")

    monkeypatch.setattr(job, "complete_catalog", slowed_down)
    assert run_job(finished).ok
    assert "the catalog lacks parts" in caplog.text
    assert "SlowDown" in caplog.text
