"""`method.schedule: auto`: a new cache gets a searched schedule, a later run joins it, other settings are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.calibration import schedule_search
from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError, IdentityMismatch
from trio_ray.method.selectors.catalogue import name_of
from trio_ray.model.replica import Replica
from trio_ray.precompute import calibration_task
from trio_ray.precompute.open_settings import SCHEDULE, CalibrationSpec, Chosen
from trio_ray.precompute.plan import plan_job


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tar(tmp_path_factory.mktemp("corpus") / "a.tar", samples(30))


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_task, "CANDIDATES", 5)


def job(model: Path, shard: Path, output: Path, **settings: object) -> JobConfig:
    return job_config(model, shard, output, method__schedule="auto", method__retention=0.4, **settings)


def never(spec: CalibrationSpec) -> Chosen:
    raise AssertionError("nothing is to be searched")


def test_a_new_cache_holds_the_found_schedule_and_a_later_run_joins_it(
    model_folders: dict[str, Path], shard: Path, tmp_path: Path, llama: Replica
) -> None:
    model = model_folders["llama"]
    plan = plan_job(job(model, shard, tmp_path), with_gpu=False)
    said = plan.chosen[SCHEDULE]
    assert "nats an answer token on" in said
    assert plan.dataset.chosen == plan.chosen
    stored = plan.dataset.identity["method"]
    assert f"prune points {stored['prune_points']}" in said
    assert list(plan.method.schedule.prune_points) == stored["prune_points"]

    run_here(job(model, shard, tmp_path), llama)  # joins: what it stores is of the found schedule
    cache = PrunedCache(str(tmp_path))
    assert cache.method == plan.method
    assert len(cache) == 30
    row = cache.table.to_pylist()[0]
    assert [len(kept) for kept in row["kept"]] == list(plan.method.schedule.counts(row["image_tokens"]))

    again = plan_job(job(model, shard, tmp_path), with_gpu=False, calibrate=never)
    assert (len(again.complete), again.chosen, again.method) == (1, {}, plan.method)
    for settings, field in (({"method__selector": "uniform"}, "method.selector"), ({"top_k": 3}, "cache.top_k")):
        named = {name if "__" in name else f"cache__{name}": value for name, value in settings.items()}
        with pytest.raises(IdentityMismatch, match=field):
            plan_job(job(model, shard, tmp_path, **named), with_gpu=False, calibrate=never)


def test_what_the_user_gives_is_not_taken_from_an_existing_cache(
    model_folders: dict[str, Path], shard: Path, tmp_path: Path
) -> None:
    model = model_folders["llama"]
    plan_job(job_config(model, shard, tmp_path, method__retention=0.4), with_gpu=False)
    joined = plan_job(job(model, shard, tmp_path), with_gpu=False, calibrate=never)
    assert joined.method.positions == "compact"
    with pytest.raises(IdentityMismatch, match=r"method\.positions"):
        plan_job(job(model, shard, tmp_path, method__positions="original"), with_gpu=False, calibrate=never)
    with pytest.raises(IdentityMismatch, match=r"method\.settings\.threshold"):
        plan_job(job(model, shard, tmp_path, method__settings={"threshold": 0.5}), with_gpu=False, calibrate=never)
    with pytest.raises(IdentityMismatch, match=r"method\.dropped"):
        plan_job(job(model, shard, tmp_path, method__dropped="represented"), with_gpu=False, calibrate=never)
    with pytest.raises(IdentityMismatch, match=r"method\.full_layers"):
        plan_job(job(model, shard, tmp_path, method__full_depth=0.5), with_gpu=False, calibrate=never)


def test_layers_that_run_on_all_tokens_are_chosen_with_the_schedule_and_joined(
    model_folders: dict[str, Path], shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folders["llama"]
    monkeypatch.setattr(schedule_search, "DEPTHS", (0.5,))
    plan = plan_job(job(model, shard, tmp_path, method__full_depth="auto"), with_gpu=False)
    layers = plan.method.schedule.layers
    assert plan.method.schedule.full_layers == round(0.5 * layers) > 0
    assert "full_depth 0.5" in plan.chosen[SCHEDULE]
    again = plan_job(job(model, shard, tmp_path, method__full_depth="auto"), with_gpu=False, calibrate=never)
    assert again.method == plan.method


def test_a_selector_is_chosen_with_the_schedule_and_joined(
    model_folders: dict[str, Path], shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folders["llama"]
    monkeypatch.setattr(schedule_search, "SELECTORS", ("groups",))
    plan = plan_job(job(model, shard, tmp_path, method__selector="auto"), with_gpu=False)
    assert name_of(plan.method.selector) == "groups"
    assert plan.chosen[SCHEDULE].startswith("selector groups")
    again = plan_job(job(model, shard, tmp_path, method__selector="auto"), with_gpu=False, calibrate=never)
    assert again.method == plan.method
    with pytest.raises(IdentityMismatch, match=r"method\.selector"):
        plan_job(job(model, shard, tmp_path, method__selector="trio-plus"), with_gpu=False, calibrate=never)


def test_a_cache_of_images_gets_one_too_and_too_few_samples_make_no_cache(
    model_folders: dict[str, Path], shard: Path, tmp_path: Path
) -> None:
    model = model_folders["llama"]
    plan = plan_job(job(model, shard, tmp_path / "images", cache__scope="image"), with_gpu=False)
    assert SCHEDULE in plan.chosen
    few = write_tar(tmp_path / "few.tar", samples(5))
    with pytest.raises(ConfigError, match="12 samples or more, and 5"):
        plan_job(job(model, few, tmp_path / "few"), with_gpu=False)
    assert not (tmp_path / "few" / "dataset.json").exists()


def test_what_it_would_choose_cannot_be_given() -> None:
    for given in ({"prune_points": [0]}, {"weights": [1]}, {"encoder": "visionzip"}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(given))}.*auto"):
            JobConfig.model_validate({"method": {"schedule": "auto", **given}})
