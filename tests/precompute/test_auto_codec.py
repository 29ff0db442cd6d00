"""`cache.codec: auto`: the job calibrates a basis of its own, or says why its cache is raw."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.precompute.ray_cluster import REPOSITORY, TRAPS
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cluster.progress import NoProgress
from trio_ray.cluster.session import ray_session
from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError, IdentityMismatch, JobFailed
from trio_ray.kv.codecs.registry import full_spec
from trio_ray.model.replica import Replica
from trio_ray.precompute import calibration_task
from trio_ray.precompute.calibration_task import calibrate_on_ray
from trio_ray.precompute.codec_choice import CodecChoice
from trio_ray.precompute.job import run_job
from trio_ray.precompute.open_settings import CODEC, SCHEDULE, CalibrationSpec, Chosen
from trio_ray.precompute.plan import plan_job
from trio_ray.store.bases import store_basis
from trio_ray.store.local import LocalStore
from trio_ray.store.opening import open_store
from trio_ray.store.verify import verify


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 samples in two shards, and a shard that is no tar."""
    folder = tmp_path_factory.mktemp("corpus")
    write_tar(folder / "a.tar", samples(50))
    write_tar(folder / "b.tar", samples(40, first=50))
    (folder / "c.tar").write_bytes(b"no tar at all" * 100)
    return folder


def auto_job(model: Path, corpus: Path, output: Path | str, **settings: object) -> JobConfig:
    return job_config(model, f"{corpus}/*.tar", output, cache__codec="auto", **{"cache__part_samples": 100, **settings})


def never(order: CalibrationSpec) -> Chosen:
    raise AssertionError("nothing is to be calibrated")


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path], corpus: Path, replicas: dict[str, Replica]
) -> Path:
    """A cache that a job with `auto` has made."""
    output = tmp_path_factory.mktemp("made") / "cache"
    run_here(auto_job(model_folders["llama"], corpus, output), replicas["llama"])
    return output


def test_a_new_cache_is_stored_in_a_basis_of_its_own(made: Path, tiny_model: Path, llama: Replica) -> None:
    cache = PrunedCache(str(made))
    codec = cache.dataset.identity["cache"]["codec"]
    assert codec["name"] == "transform"
    assert (made / "codec" / f"{codec['basis']}.safetensors").is_file()
    assert verify(LocalStore(made), 1).findings == []
    assert len(cache) == 90
    prefixes = [item.prefix for item in cache.stream(cache.rows_at(range(8)))]
    assert all(llama.generate(prefixes, max_new_tokens=3))
    cache.check_model(tiny_model, "float32")


def test_the_cache_is_smaller_and_its_choice_is_said_in_one_line(
    made: Path, tiny_model: Path, corpus: Path, llama: Replica, tmp_path: Path
) -> None:
    plan = plan_job(auto_job(tiny_model, corpus, tmp_path / "again"), with_gpu=False)
    assert plan.chosen[CODEC].startswith("transform, ")
    assert "held-out samples" in plan.chosen[CODEC]
    assert "\n" not in plan.chosen[CODEC]
    run_here(job_config(tiny_model, f"{corpus}/*.tar", tmp_path / "raw", cache__part_samples=100), llama)
    sizes = [sum(PrunedCache(str(name)).table.column("kv_length").to_pylist()) for name in (made, tmp_path / "raw")]
    assert sizes[0] < sizes[1] / 3


def test_a_second_run_joins_whatever_the_codec_is_and_calibrates_nothing(
    made: Path, tiny_model: Path, corpus: Path, llama: Replica, tmp_path: Path
) -> None:
    again = plan_job(auto_job(tiny_model, corpus, made), with_gpu=False, calibrate=never)
    assert (len(again.complete), again.chosen) == (3, {})
    plan_job(job_config(tiny_model, f"{corpus}/*.tar", tmp_path / "int4", cache__codec="int4"), with_gpu=False)
    joined = plan_job(auto_job(tiny_model, corpus, tmp_path / "int4"), with_gpu=False, calibrate=never)
    assert joined.dataset.identity["cache"]["codec"] == full_spec("int4")


def test_other_settings_are_refused_by_name_before_anything_is_calibrated(
    made: Path, tiny_model: Path, corpus: Path
) -> None:
    with pytest.raises(IdentityMismatch, match=r"cache\.codec"):
        plan_job(job_config(tiny_model, f"{corpus}/*.tar", made, cache__codec="raw"), with_gpu=False)
    with pytest.raises(IdentityMismatch, match=r"method\.retention"):
        plan_job(auto_job(tiny_model, corpus, made, method__retention=0.4), with_gpu=False, calibrate=never)


def test_an_existing_cache_of_another_level_is_refused_by_the_level(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    plan_job(job_config(tiny_model, f"{corpus}/*.tar", tmp_path, cache__level="indices"), with_gpu=False)
    with pytest.raises(IdentityMismatch, match=r"cache\.level"):
        plan_job(auto_job(tiny_model, corpus, tmp_path), with_gpu=False, calibrate=never)


def test_too_few_samples_make_a_raw_cache_and_the_reason_is_said(
    tiny_model: Path, llama: Replica, tmp_path: Path
) -> None:
    write_tar(tmp_path / "few.tar", samples(63))
    config = auto_job(tiny_model, tmp_path, tmp_path / "cache")
    plan = plan_job(config, with_gpu=False)
    assert plan.chosen[CODEC].startswith("raw, because 63 samples")
    assert "64" in plan.chosen[CODEC]
    run_here(config, llama)
    assert PrunedCache(str(tmp_path / "cache")).dataset.identity["cache"]["codec"] == full_spec("raw")


def test_a_cache_of_images_is_raw_without_a_calibration(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    config = auto_job(tiny_model, corpus, tmp_path, cache__scope="image")
    plan = plan_job(config, with_gpu=False, calibrate=never)
    assert plan.chosen[CODEC].startswith("raw, because")
    assert plan.dataset.identity["cache"]["codec"] == full_spec("raw")


@pytest.mark.parametrize("level", ["embeds", "indices"])
def test_levels_without_keys_and_values_need_no_codec(
    tiny_model: Path, corpus: Path, tmp_path: Path, level: str
) -> None:
    plan = plan_job(auto_job(tiny_model, corpus, tmp_path, cache__level=level), with_gpu=False, calibrate=never)
    assert plan.dataset.identity["cache"]["codec"] is None


def test_a_part_holds_as_many_more_samples_as_calibration_makes_them_smaller(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    sizes = [
        plan_job(
            auto_job(tiny_model, corpus, tmp_path / str(times), cache__part_samples=None, cache__part_bytes=1 << 20),
            with_gpu=False,
            calibrate=lambda _, times=times: Chosen(CodecChoice(full_spec("raw"), "", times)),
        ).dataset.part_samples
        for times in (1.0, 10.0)
    ]
    assert 10 * sizes[0] <= sizes[1] < 10 * (sizes[0] + 1)


def test_of_two_racing_runs_the_second_takes_the_codec_of_the_first(
    made: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    """The other run makes the cache while this one calibrates."""

    def late(order: CalibrationSpec) -> Chosen:
        first = plan_job(
            order.config, with_gpu=False, calibrate=lambda _: Chosen(CodecChoice(full_spec("int8"), "first"))
        )
        assert first.chosen == {CODEC: "first"}
        store_basis(open_store(order.config.output, order.config.s3), b"a basis of its own")
        return Chosen(CodecChoice(full_spec({"name": "transform", "basis": "0" * 32}), "second"))

    plan = plan_job(auto_job(tiny_model, corpus, tmp_path), with_gpu=False, calibrate=late)
    assert plan.dataset.identity["cache"]["codec"] == full_spec("int8")
    assert plan.chosen == {}


def test_a_job_in_8_bit_products_is_calibrated_in_those_of_its_dtype(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration needs gradients."""
    monkeypatch.setenv("RAY_ADDRESS", "a-cluster:6379")  # whose nodes have GPUs; this machine needs none
    orders = []

    def keep(order: CalibrationSpec) -> Chosen:
        orders.append(order)
        return Chosen(CodecChoice(full_spec("raw"), ""))

    config = auto_job(tiny_model, corpus, tmp_path, model__matmul="fp8", model__dtype="auto")
    identity = plan_job(config, with_gpu=True, calibrate=keep).dataset.identity
    (order,) = orders
    assert (order.config.model.matmul, order.config.model.dtype) == ("dtype", "bfloat16")
    assert identity["model"] == {**order.model, "dtype": "bfloat16", "matmul": "fp8"}


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """Ray on this machine, whose processes know the traps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(TRAPS)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(2):
            yield


@pytest.mark.slow
def test_a_job_calibrates_in_a_task_of_ray_and_says_what_it_chose(
    session: None, made: Path, tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_task, "calibrate_here", never)  # here; Ray's processes have their own
    said: list[str] = []

    class Listener(NoProgress):
        def say(self, line: str) -> None:
            said.append(line)

    # Settings that leave little to search.
    little = {"layout": "uniform", "selector": "random", "dropped": "lost"}
    open_too = {"method__schedule": "auto", **{f"method__{name}": value for name, value in little.items()}}
    summary = run_job(auto_job(tiny_model, corpus, tmp_path / "cache", **open_too), Listener())
    assert list(summary.failed) == [str(corpus / "c.tar")]  # which is no tar
    assert summary.stored == 90
    assert list(summary.chosen) == [SCHEDULE, CODEC]
    for name, why in summary.chosen.items():
        assert f"{name}: {why}" in str(summary)
        assert f"{name} auto: {why}" in said
    codecs = [PrunedCache(str(name)).dataset.identity["cache"]["codec"] for name in (made, tmp_path / "cache")]
    assert codecs[0]["name"] == codecs[1]["name"] == "transform"


@pytest.mark.slow
def test_a_calibration_that_is_killed_is_tried_again_and_then_says_what_to_do(
    session: None, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_task, "ATTEMPTS", 2)  # each starts a process
    shard = write_tar(tmp_path / "x.kills.tar", samples(3))
    Path(f"{shard}.armed").touch()
    config = job_config(tiny_model, shard, tmp_path / "cache", cache__codec="auto")
    with pytest.raises(JobFailed, match=r"killed 2 times.*--set cache\.codec"):
        calibrate_on_ray(CalibrationSpec(config, {}), 0)


@pytest.mark.slow
def test_what_the_model_cannot_do_is_named_and_a_lack_of_room_is_not_waited_for(
    session: None, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    config = auto_job(tiny_model, corpus, tmp_path, model__attention="fa3")
    with pytest.raises(ConfigError, match=r"model\.attention"):
        calibrate_on_ray(CalibrationSpec(config, {}), 0)
    config = auto_job(tiny_model, corpus, tmp_path, replicas__cpus=999, replicas__start_timeout_s=2)
    with pytest.raises(JobFailed, match=r"999 CPUs.*replicas\.start_timeout_s"):
        calibrate_on_ray(CalibrationSpec(config, {}), 0)
