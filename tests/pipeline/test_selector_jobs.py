"""Jobs with another selection: what they store reads back, and the cache's identity and the configuration know it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.corpora import photo, sample, samples, write_tar
from tests.pipeline.contract import assert_follows_the_contract
from tests.pipeline.runs import job_config, run_here
from trio_ray.cache import PrunedCache
from trio_ray.config import load_config
from trio_ray.errors import ConfigError, IdentityMismatch
from trio_ray.method.selectors import SELECTORS
from trio_ray.model.prepare import PreparedSample
from trio_ray.model.replica import Replica, make_schedule, make_selector, make_zipper
from trio_ray.source.reader import read_shard
from trio_ray.store.commits import read_commits
from trio_ray.store.inputs import StoreOpener
from trio_ray.store.local import LocalStore
from trio_ray.store.verify import verify

SELECTIONS: dict[str, dict[str, Any]] = {
    "encoder": {"method__encoder": "visionzip"},
    "encoder alone": {"method__encoder": "visionzip", "method__prune_points": [0]},
    "encoder, random": {"method__encoder": "visionzip", "method__selector": "random"},
    "original positions": {"method__positions": "original"},
    **{name: {"method__selector": name} for name in SELECTORS if name != "trio"},
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_job_stores_prefixes_that_decode_to_the_tokens_of_the_process(
    tmp_path: Path, tiny_model: Path, llama: Replica, name: str
) -> None:
    tar = write_tar(tmp_path / "a.tar", [*samples(5), sample(5, png=photo())])
    config = job_config(tiny_model, tar, tmp_path / "cache", method__retention=0.4, **{**SELECTIONS[name]})
    run_here(config, llama)
    store = LocalStore(tmp_path / "cache")
    report = verify(store, 1)
    assert (report.findings, report.incomplete) == ([], [])
    assert_follows_the_contract(store)

    shard = next(iter(PrunedCache(str(tmp_path / "cache")).commits)).shard
    del shard
    prepare = llama.preparer(10**8).prepare
    stored = list(PrunedCache(str(tmp_path / "cache")).stream())
    prepared = [prepare(item) for item in read_shard(_only_shard(config), config.source, StoreOpener(config.s3))]
    assert [item.row["key"] for item in stored] == [ready.key for ready in prepared]
    schedule = make_schedule(config.method, llama.decoder.depth)
    for item, ready in zip(stored, prepared, strict=True):
        assert isinstance(ready, PreparedSample)
        (here,) = llama.prefill([ready], schedule, make_selector(config.method), zipper=make_zipper(config.method))
        assert [kept.tolist() for kept in item.prefix.kept] == [kept.tolist() for kept in here.kept]
        assert item.row["kept"] == [kept.tolist() for kept in here.kept]
        assert llama.generate([item.prefix], 10) == llama.generate([here], 10)
    together = llama.generate([item.prefix for item in stored], 10)
    assert together == [llama.generate([item.prefix], 10)[0] for item in stored]
