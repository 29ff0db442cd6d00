"""Predicted sizes are those of the cache that the job then makes: with a given GPU from shapes, or measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.corpora import noise, sample, samples, write_tar
from tests.precompute.runs import run_here
from trio_ray.config import JobConfig, load_config
from trio_ray.estimate.choices import Use
from trio_ray.estimate.estimate import Estimate, EstimateSettings, make_estimate
from trio_ray.estimate.prices import Prices
from trio_ray.estimate.report import text
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.model.replica import Replica
from trio_ray.store.commit_table import read_commits
from trio_ray.store.layout import COMMITS
from trio_ray.store.opening import open_store

TOLERANCE = 0.15


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 scenes of four questions in two shards."""
    folder = tmp_path_factory.mktemp("scenes")
    write_corpus(folder, 12, 24)
    return folder


@pytest.fixture(scope="module")
def bundled() -> Replica:
    """The bundled model in fp32."""
    return Replica.load(load_config(values={"model.dtype": "float32"}).model)


def job(scenes: Path, output: Path, **values: Any) -> JobConfig:
    """A job of the bundled model over the scenes."""
    fixed = {"input": [f"{scenes}/*.tar"], "output": str(output), "model.dtype": "float32"}
    return load_config(values=fixed | {name.replace("__", "."): value for name, value in values.items()})


def estimate_for(config: JobConfig, flop_per_s: float | None = 1e12, samples: int = 40, **codecs: str) -> Estimate:
    """Without prices."""
    return make_estimate(EstimateSettings(config, samples, codecs, flop_per_s, 0.0, 1, None, Prices(), Use()))


def made(config: JobConfig) -> tuple[int, int, int]:
    """Samples, parts and bytes of the cache that the job has left."""
    store = open_store(config.output, config.s3)
    commits = read_commits(store, 4)
    files = sum(file.size for commit in commits for file in commit.files.values())
    records = sum(info.size for info in store.list(COMMITS))
    return sum(commit.stored for commit in commits), len(commits), files + records


@pytest.mark.parametrize(
    "settings",
    [
        {"cache__codec": "raw"}, {"cache__level": "embeds"}, {"cache__level": "indices"},
        {"cache__codec": "int2"},
        {"cache__scope": "image", "cache__codec": "int8"},
    ],
    ids=str,
)  # fmt: skip
def test_samples_parts_and_bytes_computed_from_shapes_are_those_of_the_job(
    scenes: Path, bundled: Replica, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = job(scenes, tmp_path / "cache", cache__part_samples=20, **settings)
    found = estimate_for(config)
    run_here(config, bundled)
    stored, parts, size = made(config)
    assert (found.corpus.stored_samples, found.job.parts) == (stored, parts)
    assert found.job.total_bytes == pytest.approx(size, rel=TOLERANCE)


def test_samples_that_the_job_refuses_for_their_fixed_budget_are_not_counted_as_stored(tmp_path: Path) -> None:
    """The layers before the first prune point alone hold more of the large image than method.tokens allows."""
    write_tar(tmp_path / "a.tar", [sample(0, png=noise(1, (8, 8))), sample(1, png=noise(2, (1400, 1400)))])
    values = {"input": [str(tmp_path / "a.tar")], "output": str(tmp_path / "cache"), "cache.codec": "raw"}
    whole = estimate_for(load_config(values=values)).corpus
    assert (whole.stored_samples, whole.bad_drawn) == (2, {})
    prune = {"method.tokens": whole.image_tokens_per_sample / 2, "method.prune_points": [7], "method.weights": [1]}
    refused = estimate_for(load_config(values=values | prune)).corpus
    assert (refused.stored_samples, refused.bad_drawn) == (1, {"image_too_large": 1})


def test_measured_sizes_are_closer_still_and_every_choice_is_weighed(
    scenes: Path, bundled: Replica, tmp_path: Path
) -> None:
    config = job(scenes, tmp_path / "cache", cache__codec="int4")
    found = estimate_for(config, flop_per_s=None, samples=32, raw="raw", int4="int4")
    run_here(config, bundled)
    assert found.job.total_bytes == pytest.approx(made(config)[2], rel=0.05)
    assert [choice.name for choice in found.choices] == ["indices", "embeds", "kv raw", "kv int4"]
    by_name = {choice.name: choice for choice in found.choices}
    assert by_name["kv int4"].bytes_per_sample < by_name["kv raw"].bytes_per_sample / 3
    assert found.job.bytes_per_sample == pytest.approx(by_name["kv int4"].bytes_per_sample, rel=0.05)
    times = found.times
    assert times.source == "measured"
    assert 0 < times.embeds_s < times.unpruned_s
    assert by_name["kv raw"].finish_s > 0


def test_without_a_model_the_size_of_a_codec_left_open_is_an_assumption_and_said_to_be_one(tmp_path: Path) -> None:
    write_corpus(tmp_path / "scenes", 20, 40)
    config = job(tmp_path / "scenes", tmp_path / "cache", model__dtype="bfloat16")
    found = estimate_for(config, raw="raw")
    assert found.codec_note is not None
    assert "assumed to make prefixes 8 times smaller" in found.codec_note
    assert found.codec_note in text(found)
    raw, auto = found.choices[-2:]
    assert (auto.name, auto.source, found.job.codec) == ("kv auto", "assumed", "auto")
    assert auto.bytes_per_sample < raw.bytes_per_sample / 4
    assert found.job.bytes_per_sample == pytest.approx(auto.bytes_per_sample, rel=0.2)


@pytest.mark.parametrize("settings", [{}, {"cache__scope": "image"}], ids=str)
def test_a_codec_left_open_is_estimated_as_raw_where_the_job_would_take_that(
    scenes: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """48 samples are too few for a basis."""
    left_open, raw = (estimate_for(job(scenes, tmp_path, **settings, **more)) for more in ({}, {"cache__codec": "raw"}))
    assert left_open.codec_note is not None
    assert left_open.codec_note.startswith("auto is raw")
    assert left_open.job.tar_bytes == raw.job.tar_bytes


def test_measuring_calibrates_a_codec_that_is_left_open(tmp_path: Path, tiny_model: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(80))
    config = load_config(values={
        "input": [str(tmp_path / "a.tar")], "output": str(tmp_path / "cache"), "model.name": str(tiny_model),
        "model.dtype": "float32", "method.retention": 0.3,
    })  # fmt: skip
    found = estimate_for(config, flop_per_s=None, samples=80, raw="raw")
    assert found.codec_note is not None
    assert "calibrated on the drawn samples: transform" in found.codec_note
    raw, auto = found.choices[-2:]
    assert (auto.name, auto.source) == ("kv auto", "encoded")
    assert auto.bytes_per_sample < raw.bytes_per_sample / 3
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("text_only", "bad_share"), [("quarantine", 0.25), ("skip", 0.0)])
def test_rows_that_are_passed_over_are_neither_bad_nor_stored(text_only: str, bad_share: float, tmp_path: Path) -> None:
    rows = [sample(number, **({"png": None} if number % 4 == 0 else {})) for number in range(16)]
    write_tar(tmp_path / "a.tar", rows)
    config = job(tmp_path, tmp_path / "cache", cache__codec="raw", source__text_only=text_only)
    facts = estimate_for(config).corpus
    assert (facts.samples, facts.stored_samples, facts.bad_share) == (16, 12, bad_share)
    assert ("4 of the drawn rows have no image" in text(estimate_for(config))) is (text_only == "skip")


def test_one_pass_of_an_image_serves_its_questions(scenes: Path, tmp_path: Path) -> None:
    """Four questions an image: a quarter of the vision tower's work each."""
    found = estimate_for(job(scenes, tmp_path / "cache"))
    assert found.corpus.encoded_images_per_sample == pytest.approx(0.25)


def test_time_follows_the_given_speed_the_replicas_and_the_bandwidth(scenes: Path, tmp_path: Path) -> None:
    """More replicas than shards have nothing to do; an upload that takes longer than the model rules."""
    config = job(scenes, tmp_path / "cache")

    def planned(speed: float, replicas: int, bandwidth: float | None) -> Estimate:
        return make_estimate(
            EstimateSettings(config, 40, {}, speed, 0.0, replicas, bandwidth, Prices(gpu_per_hour=3600.0), Use())
        )

    one = planned(1e12, 1, None)
    assert one.job.gpu_hours * 3600 == pytest.approx(48 * one.work.pruned / 1e12)
    assert one.job.compute_cost == pytest.approx(one.job.gpu_hours * 3600)
    assert one.job.storage_cost is None
    assert planned(2e12, 1, None).job.wall_s == pytest.approx(one.job.wall_s / 2)
    many = planned(1e12, 8, None)
    assert (many.job.replicas, many.job.wall_s) == (2, pytest.approx(one.job.wall_s / 2))
    slow = planned(1e12, 1, 0.0001)
    assert slow.job.wall_s == pytest.approx(slow.job.total_bytes / 100_000, rel=1e-6)
