"""The numbers of a report: from commit records, from tables, and where in the picture tokens are kept."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.store.caches import row
from trio_ray.cache.identity import build_identity, method_of
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import JobConfig, S3Config
from trio_ray.errors import ConfigError
from trio_ray.estimate.estimate import CorpusFacts, JobCost
from trio_ray.method.method import Method
from trio_ray.model.loading import model_folder
from trio_ray.model.patch_grid import PatchGrid
from trio_ray.report.heat_map import CELLS, KeptPlaces
from trio_ray.report.prediction import compared, read_prediction
from trio_ray.report.repeat import brace_ranges, job_that_repeats
from trio_ray.report.statistics import sample_numbers
from trio_ray.report.timeline import timeline, together
from trio_ray.store.commit_table import row_of, table_of
from trio_ray.store.commits import CommitRecord, FooterRecord, PartStatistics, RunRecord, ShardInput
from trio_ray.store.dataset import create_or_check
from trio_ray.store.opening import open_store
from trio_ray.store.parts import PartWriter
from trio_ray.store.totals import Totals, add_up


def part(
    replica: str, start: int, stop: int, samples: int, device_s: float, shard: str = "s", part: int = 0
) -> CommitRecord:
    """A part that a device made between two minutes of an hour."""
    times = [f"2026-01-01T{minute // 60:02d}:{minute % 60:02d}:00.000+00:00" for minute in (start, stop)]
    run = RunRecord("run", "host", *times, "0.1.0")
    sums = PartStatistics(100 * samples, 10.0 * samples, 1000 * samples, device_s, {"image_corrupt": 2})
    source = ShardInput(shard, f"/{shard}.tar", 1, "e", None)
    return CommitRecord(
        2, "0" * 64, source, part, "a", True, samples, 2, sums, {}, FooterRecord(1, "0" * 32), run, replica
    )


def added_up(commits: list[CommitRecord]) -> Totals:
    """The sums over made-up records."""
    return add_up(table_of([row_of(record, "") for record in commits]))


def test_rates_and_busy_times_add_up_to_what_was_made() -> None:
    work = timeline([part("a", 0, 10, 600, 300.0), part("a", 10, 20, 300, 600.0), part("b", 0, 20, 100, 0.0)], bins=40)
    assert work is not None
    assert work.seconds == 1200
    assert work.breaks == []
    first, second = work.replicas
    assert (first.name, first.samples, second.samples) == ("a", 900, 100)
    width = work.edges[1] - work.edges[0]
    assert first.rate.sum() * width == pytest.approx(900)
    assert first.rate[5] == pytest.approx(1.0)
    assert first.rate[30] == pytest.approx(0.5)
    assert (first.busy[5], first.busy[30]) == (pytest.approx(0.5), pytest.approx(1.0))
    assert first.busy_share == pytest.approx(0.75)
    assert {name: rate.sum() * width for name, rate in together(work.replicas, 1).items()} == {
        "2 others": pytest.approx(1000)
    }


def test_long_idle_times_are_cut_out_of_the_axis() -> None:
    work = timeline([part("a", 0, 10, 100, 1.0), part("a", 130, 140, 100, 1.0)])
    assert work is not None
    assert work.seconds == 1200
    assert work.breaks == [(600.0, 7200.0)]
    assert (work.replicas[0].rate > 0).all()
    assert timeline([part("a", 0, 1, 0, 0.0)]) is None


def test_sums_are_those_of_the_records() -> None:
    totals = added_up([part("a", 0, 10, 600, 300.0), part("b", 5, 9, 40, 2.0, "t"), part("b", 9, 20, 0, 0.0, "t", 1)])
    assert (totals.parts, totals.shards, totals.stored, totals.quarantined) == (3, 2, 640, 6)
    assert totals.retention == pytest.approx(0.1)
    assert totals.reasons == {"image_corrupt": 6}
    assert totals.replicas == ("a", "b")
    assert (totals.started, totals.finished) == ("2026-01-01T00:00:00.000+00:00", "2026-01-01T00:20:00.000+00:00")


@pytest.mark.parametrize("side", [4, 24])
def test_a_kept_token_is_counted_where_it_lies_in_the_picture(side: int) -> None:
    """Of the base view and of the tiles, also where a map has more cells than there are patches."""
    grid = PatchGrid(side, (1, 2), (0, side), (0, 2 * side))
    places = KeptPlaces(points=2)
    places.add_all(grid, 1)
    bottom_right = side * side - 1
    top_left_of_second_tile = side * side + side
    newline = side * side + 2 * side
    places.add(grid, [np.array([bottom_right, top_left_of_second_tile, newline]), np.array([], np.int64)])
    assert places.base_all.min() > 0
    assert places.grid_all.min() > 0
    assert places.base_kept[0, -1, -1] == places.base_kept[0].max() > 0
    assert places.base_kept[0, : CELLS // 2].sum() == 0
    assert places.grid_kept[0, 0, CELLS // 2] > 0
    assert places.grid_kept[0, :, : CELLS // 2].sum() == 0
    assert (places.newlines_kept[0], places.newlines_all[0]) == (1, side)
    base, tiles = places.tiles[1, 2].shares(0, (1, 2))
    assert base == tiles[0, 1] == pytest.approx(1 / side**2)
    assert tiles[0, 0] == 0
    assert not any(sums[1].any() for sums in (places.base_kept, places.grid_kept, places.newlines_kept[:, None]))


@pytest.fixture
def cache(tmp_path: Path) -> PrunedCache:
    """Five shards of made-up rows, whose kept tokens differ from row to row."""
    identity = build_identity(
        JobConfig(), model_folder(JobConfig().model), torch.float32, Method.build(32), {"name": "raw", "zstd": 0}
    )
    store = open_store(str(tmp_path / "cache"), S3Config())
    dataset = create_or_check(store, identity, 10, "bundled")
    image = {"hash": "ab" * 16, "width": 640, "height": 480, "grid_rows": 2, "grid_columns": 2, "tokens": 2340}
    for shard in range(5):
        source = ShardInput(f"shard-{shard}", f"s3://corpus/{shard:05d}.tar", 1, "e", None)
        for number in range(2):
            writer = PartWriter(store, dataset, source, number, "run")
            for index in range(3):
                kept = [list(range(shard + index + 3 - point)) for point in range(3)]
                sample = {**row(f"{shard}.{number}.{index}", 10 * number + index), "images": [image], "kept": kept}
                writer.add(sample, bytes(100 + shard))
            writer.commit(last=number == 1)
    return PrunedCache(str(tmp_path / "cache"))


def test_numbers_of_samples_are_those_of_the_table(cache: PrunedCache) -> None:
    numbers = sample_numbers(cache, 1000)
    table = cache.table.to_pylist()
    assert numbers.keys == [sample["key"] for sample in table]
    assert numbers.number.tolist() == list(range(30))
    assert numbers.kept.T.tolist() == [[len(point) for point in sample["kept"]] for sample in table]
    assert numbers.size.tolist() == [sample["kv_length"] for sample in table]
    assert numbers.retention == pytest.approx([sample["retention"] for sample in table])
    assert numbers.chance == pytest.approx(np.exp([sample["first_logprob"] for sample in table]))
    assert numbers.unplaced == 0
    assert numbers.places.base_kept.sum() > 0


def test_of_a_larger_cache_whole_shards_are_drawn(cache: PrunedCache) -> None:
    numbers = sample_numbers(cache, 13)
    assert len(numbers) == 12
    assert numbers.total == 30
    rows = cache.rows_at(numbers.number.tolist())
    assert [(sample["shard"], sample["key"]) for sample in rows] == [
        (numbers.shards[shard], key) for shard, key in zip(numbers.shard, numbers.keys, strict=True)
    ]
    assert len(sample_numbers(cache, 1)) == 6, "one shard is read, however many samples it has"


def test_the_settings_that_repeat_a_cache_make_the_same_identity(cache: PrunedCache) -> None:
    tree = yaml.safe_load(job_that_repeats(cache))
    assert tree["input"] == ["s3://corpus/{00000..00004}.tar"]
    config = JobConfig.model_validate(tree)
    identity = cache.dataset.identity
    assert config.method.build(32) == method_of(identity)
    again = build_identity(
        config, model_folder(config.model), torch.float32, config.method.build(32), identity["cache"]["codec"]
    )
    assert again == identity


def test_numbered_names_become_ranges() -> None:
    names = [f"s3://c/a-{number:03d}.tar" for number in (0, 1, 2, 4)] + [
        "s3://c/b.tar",
        "s3://c/v2-09.tar",
        "s3://c/v2-10.tar",
    ]
    assert brace_ranges(names) == [
        "s3://c/a-004.tar",
        "s3://c/a-{000..002}.tar",
        "s3://c/b.tar",
        "s3://c/v2-{09..10}.tar",
    ]


def test_an_estimate_is_set_beside_what_it_became(tmp_path: Path) -> None:
    assert {"stored_samples"} <= {field.name for field in fields(CorpusFacts)}
    job = {
        "bytes_per_sample": 500.0,
        "total_bytes": 500_000,
        "parts": 2,
        "gpu_hours": 0.5,
        "wall_s": 900.0,
        "replicas": 2,
    }
    assert set(job) <= {field.name for field in fields(JobCost)}
    file = tmp_path / "estimate.json"
    file.write_text(json.dumps({"corpus": {"stored_samples": 1000}, "job": job}))
    commits = [part("a", 0, 10, 600, 300.0), part("b", 10, 20, 400, 1500.0)]
    lines = {line.name: line for line in compared(read_prediction(str(file)), added_up(commits), timeline(commits))}
    assert lines["samples stored"].ratio == 1.0
    assert (lines["time of all devices"].predicted, lines["time of all devices"].actual) == (1800.0, 1800.0)
    assert lines["time of work"].actual == 1200
    for text in ("{", json.dumps({"corpus": {}, "job": job})):
        file.write_text(text)
        with pytest.raises(ConfigError, match="--estimate"):
            read_prediction(str(file))
