"""The benchmark's caches are real ones, and what it measures is what the object store was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import S3Config
from trio_ray.lab.scale import bench
from trio_ray.lab.scale.bench import growth, run_bench, study
from trio_ray.lab.scale.measure import WHAT, Subject
from trio_ray.lab.scale.requests import counted_requests
from trio_ray.lab.scale.synthetic import Synthetic, key_of
from trio_ray.store import commit_table


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten parts are many."""
    monkeypatch.setattr(commit_table, "READ_ALONE", 9)


def measured(order: dict[str, Any]) -> dict[str, Any]:
    """A measurement in this process."""
    subject = Subject(order)
    subject.prepare(order["what"])
    with counted_requests() as requests:
        found = getattr(subject, order["what"])()
    figures = {"seconds": 1.0, "cpu_s": 1.0, "memory": 1 << 20, "bytes": requests.bytes}
    return {**figures, "gets": requests.gets, "lists": requests.lists, "writes": requests.writes, **found}


def test_a_synthetic_cache_holds_what_it_says(tmp_path: Path, many: None) -> None:
    Synthetic(str(tmp_path), S3Config(), rows=7, prefix_bytes=1000, tables=True).build(range(12))
    cache = PrunedCache(str(tmp_path))
    assert len(cache) == len(set(cache.keys())) == 84
    row = cache.row(key_of(11, 6))
    assert row["index"] == 7 + 6
    assert len(cache.fetch([row])[0].data) == 1000


def test_every_measurement_is_made_and_reported(tmp_path: Path, many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "in_own_process", lambda module, what, order: measured(order))
    job = bench.ScaleBench(str(tmp_path), S3Config(), (12, 24), rows=5, prefix_bytes=1000, tables_up_to=12)
    record = run_bench(job, lambda step: None, lambda record: None)
    small, large = (size["found"] for size in record["sizes"])
    assert set(small) == set(WHAT)
    assert set(large) == {"open", "pickle", "prefixes", "prefixes_warm", "inspect", "resume", "append"}
    assert (small["open"]["samples"], large["inspect"]["samples"]) == (60, 120)
    assert small["join"]["found"] == small["join"]["questions"] == 60
    assert (small["open"]["gets"], small["open"]["lists"]) == (2, 1), "dataset.json and the root of the catalog"
    assert small["row_cold"]["gets"] == 3, "a bucket of the index, the part's segment, and a small table"
    assert small["row_warm"]["gets"] == 12, "each table once"
    assert small["prefixes_warm"]["gets"] == small["prefixes_warm"]["of"]
    assert small["prefixes"]["bytes"] > small["prefixes"]["of_bytes"]
    assert all(f"| {what} | 12 |" in study(record).text for what in WHAT)


def test_growth_is_the_exponent() -> None:
    assert growth([10, 100, 1000], [3.0, 30.0, 300.0]) == pytest.approx(1.0)
    assert growth([10, 1000], [5.0, 5.0]) == pytest.approx(0.0)
    assert growth([10], [5.0]) is None
