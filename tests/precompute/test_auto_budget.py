"""`pipeline.token_budget: auto` leaves a replica with a budget that was tried, and changes nothing that is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.corpora import sample, samples, write_tar
from tests.precompute.runs import account, job_config, make_runner, part_reports
from trio_ray.config import DEFAULT_TOKEN_BUDGET, ConfigError, load_config
from trio_ray.model.replica import Replica
from trio_ray.precompute import auto_budget
from trio_ray.precompute.auto_budget import suit_budget
from trio_ray.precompute.plan import plan_job
from trio_ray.precompute.replica_actor import ReplicaActor, ReplicaSpec
from trio_ray.precompute.shard_writer import PartReport
from trio_ray.precompute.token_budget import find_budget


def test_a_number_is_the_default_and_auto_the_only_word() -> None:
    assert load_config().pipeline.token_budget == DEFAULT_TOKEN_BUDGET
    assert load_config(values={"pipeline.token_budget": "auto"}).pipeline.batch_rows == DEFAULT_TOKEN_BUDGET
    assert load_config(values={"pipeline.token_budget": 9}).pipeline.batch_rows == 9
    for wrong in ("large", 0):
        with pytest.raises(ConfigError, match=r"pipeline\.token_budget"):
            load_config(values={"pipeline.token_budget": wrong})


def test_a_replica_tries_budgets_once_and_stores_every_sample(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def watched(*args: object, **kwargs: object) -> object:
        found.append(find_budget(*args, **kwargs, most=1024))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(auto_budget, "find_budget", watched)
    tars = [str(write_tar(tmp_path / f"{name}.tar", samples(6))) for name in "ab"]
    config = job_config(tiny_model, tars, tmp_path / "cache", pipeline__token_budget="auto")
    plan = plan_job(config, with_gpu=False)
    actor = ReplicaActor(ReplicaSpec(config, plan.dataset, plan.run_id))
    actor.load()
    reports = [report for task in plan.tasks for report in actor.run(task)]
    assert sum(report.stored for report in reports if isinstance(report, PartReport)) == 12
    assert len(account(plan.store).stored) == 12
    assert len(found) == 1
    assert actor._runner.stage.token_budget == found[0].best.token_budget


def test_where_nothing_can_be_tried_the_budget_stays(
    tmp_path: Path, tiny_model: Path, llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of bad samples alone, and a device too small for the first trial: the job goes on as without `auto`."""
    config = job_config(
        tiny_model, write_tar(tmp_path / "a.tar", [sample(0, png=b"")]), tmp_path / "c", pipeline__token_budget="auto"
    )
    plan = plan_job(config, with_gpu=False)
    runner = make_runner(config, llama, plan)
    shard = plan.tasks[0].shard
    assert suit_budget(runner.stage, config, shard, runner.opener) == DEFAULT_TOKEN_BUDGET

    def too_small(*args: object, **kwargs: object) -> object:
        raise torch.OutOfMemoryError("as CUDA says it")

    good = job_config(tiny_model, write_tar(tmp_path / "b.tar", samples(2)), tmp_path / "d")
    plan = plan_job(good, with_gpu=False)
    runner = make_runner(good, llama, plan)
    monkeypatch.setattr(auto_budget, "find_budget", too_small)
    assert suit_budget(runner.stage, good, plan.tasks[0].shard, runner.opener) == DEFAULT_TOKEN_BUDGET
    assert sum(r.stored for r in part_reports(runner.run(plan.tasks[0].shard, frozenset()))) == 2
