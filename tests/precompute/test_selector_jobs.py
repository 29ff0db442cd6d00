"""Jobs with another selection: what they store reads back, and configuration and identity know the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cache.test_pruned_cache import Recording
from tests.corpora import photo, sample, samples, write_tar
from tests.precompute.contract import assert_follows_the_contract
from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import load_config
from trio_ray.errors import ConfigError, IdentityMismatch
from trio_ray.method.selectors.catalogue import bundled_selectors
from trio_ray.model.replica import Replica
from trio_ray.precompute.plan import plan_job
from trio_ray.store.local import LocalStore
from trio_ray.store.verify import verify

SELECTIONS: dict[str, dict[str, Any]] = {
    "encoder": {"method__encoder": "visionzip"},
    "encoder_alone": {"method__encoder": "visionzip", "method__prune_points": [0]},
    "encoder_and_random": {"method__encoder": "visionzip", "method__selector": "random"},
    "original_positions": {"method__positions": "original"},
    **{name: {"method__selector": name} for name in bundled_selectors() if name != "trio"},
}


@pytest.mark.parametrize("settings", SELECTIONS.values(), ids=SELECTIONS)
def test_what_a_job_stores_decodes_to_the_tokens_of_the_process(
    tmp_path: Path, tiny_model: Path, llama: Replica, settings: dict[str, Any]
) -> None:
    tar = write_tar(tmp_path / "a.tar", [*samples(5), sample(5, png=photo()), sample(6, png=b"")])
    config = job_config(tiny_model, tar, tmp_path / "cache", **settings)
    recording = Recording.of(llama)
    run_here(config, recording)
    report = verify(LocalStore(tmp_path / "cache"), 1)
    assert (report.findings, report.incomplete) == ([], [])
    assert_follows_the_contract(LocalStore(tmp_path / "cache"))

    stored = list(PrunedCache(str(tmp_path / "cache")).stream())
    assert [item.row["key"] for item in stored] == [key for key, _ in recording.computed]
    assert len(stored) == 6
    for item, (_, here) in zip(stored, recording.computed, strict=True):
        assert item.row["kept"] == [kept.tolist() for kept in here.kept] == [k.tolist() for k in item.prefix.kept]
        assert len({len(kept) for kept in here.kept} | {item.row["image_tokens"]}) > 1  # something was dropped
        assert item.row["retention"] == pytest.approx(0.3, abs=0.02)
        assert llama.generate([item.prefix], 10) == llama.generate([here], 10)
    together = llama.generate([item.prefix for item in stored], 10)
    assert together == [llama.generate([prefix], 10)[0] for _, prefix in recording.computed]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"method__selector": "random"}, "method.selector"),
        ({"method__selector": "sieve"}, "method.selector"),
        ({"method__positions": "original"}, "method.positions"),
        ({"method__settings": {"threshold": 0.7}}, "method.settings.threshold"),
        ({"method__encoder": "visionzip"}, "method.encoder"),
    ],
)
def test_a_cache_of_one_selection_takes_no_prefixes_of_another(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], field: str
) -> None:
    """The prune points are the same here, so that the selection alone is what differs."""
    tar = write_tar(tmp_path / "a.tar", samples(1))
    points = {"method__prune_points": [0, 4], "method__weights": [3, 1]}
    plan_job(job_config(tiny_model, tar, tmp_path / "cache", **points), with_gpu=False)
    with pytest.raises(IdentityMismatch) as caught:
        plan_job(job_config(tiny_model, tar, tmp_path / "cache", **points, **settings), with_gpu=False)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        *(
            (
                {"selector": name, "settings": {"supervised_rows": [-1]}},
                "method.settings.supervised_rows",
                "is not a setting",
            )
            for name in ("random", "attention", "sieve")
        ),
        *(
            ({"selector": name, "settings": {"threshold": 0.8}}, "method.settings.threshold", "is not a setting")
            for name in ("uniform", "sieve")
        ),
        ({"encoder": "visionzip", "prune_points": [1, 5]}, "method.prune_points", "must begin with 0"),
        ({"encoder": "visionzip", "positions": "original"}, "method.positions", "not possible"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused_by_name(
    settings: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(values={"method": settings})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"selector": "best"}, "method.selector"),
        ({"encoder": "vscan"}, "method.encoder"),
        ({"positions": "left"}, "method.positions"),
    ],
)
def test_a_selection_that_does_not_exist_is_refused_by_its_field(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(values={"method": settings})
    assert caught.value.field == field
