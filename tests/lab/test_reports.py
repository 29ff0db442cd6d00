"""The cost of the page about a cache is measured on a cache like those that jobs make."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import S3Config
from trio_ray.lab.reports import make_cache, measure_report, study
from trio_ray.store.opening import open_store
from trio_ray.store.verify import verify


@pytest.mark.slow
def test_a_made_cache_is_sound_and_its_page_is_measured(tmp_path: Path) -> None:
    uri = make_cache(tmp_path, 24, lambda what: None)
    report = verify(open_store(uri, S3Config()), 2)
    assert report.ok, report.findings
    cache = PrunedCache(uri)
    assert len(cache) >= 24
    assert {"image_corrupt", "duplicate_key"} <= set(cache.quarantine.column("reason").to_pylist())
    for row in cache.table.to_pylist():
        assert [len(kept) for kept in row["kept"]] == list(cache.method.schedule.counts(row["image_tokens"]))
    assert make_cache(tmp_path, 24, lambda what: None) == uri, "it is taken as it is"
    page = measure_report(uri, tmp_path / "page.html", ["--pictures", "1"])
    assert (page["samples"], page["parts"]) == (len(cache), len(cache.commits))
    assert page["bytes"] == (tmp_path / "page.html").stat().st_size > 50_000
    assert f"| {len(cache)} | {len(cache.commits)} | {page['seconds']:.1f} |" in study({"pages": [page]}).text
