"""A damaged cache is repaired by `verify --repair` and the same job again: exactly what was damaged is made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.precompute.runs import account, job_config, run_here
from trio_ray.cli import main
from trio_ray.errors import ConfigError
from trio_ray.model.replica import Replica
from trio_ray.precompute.plan import plan_job
from trio_ray.store.catalog import read_catalog
from trio_ray.store.catalog_writer import complete_catalog
from trio_ray.store.commit_table import read_commits
from trio_ray.store.dataset import load_dataset
from trio_ray.store.local import LocalStore
from trio_ray.store.verify import verify


def test_the_next_run_makes_exactly_the_parts_that_were_set_aside(
    tmp_path: Path, tiny_model: Path, llama: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [str(write_tar(tmp_path / "in" / f"{n}.tar", samples(10, first=100 * n))) for n in range(2)]
    config = job_config(tiny_model, inputs, tmp_path / "cache")
    run_here(config, llama)
    store = LocalStore(tmp_path / "cache")
    sound = sorted(account(store).keys)
    first, second = sorted((tmp_path / "cache" / "commits").glob("*/*"))
    (tar,) = (tmp_path / "cache" / "data").glob(f"*/{first.name}/00001-*.tar")
    tar.write_bytes(tar.read_bytes()[:-700])  # a disk that was full, or a copy that was cut
    next((tmp_path / "cache" / "data").glob(f"*/{second.name}/00002-*.parquet")).unlink()
    (second / "00000.json").write_bytes(b"")

    assert main(["verify", config.output, "--repair"]) == 0
    shown = capsys.readouterr().out
    wanted = {(first.name, 1), (second.name, 0), (second.name, 2)}
    for shard, part in wanted:
        assert f"set aside: part {part} of shard {shard}" in shown
    assert {(report.shard, report.part) for report in run_here(config, llama)} == wanted
    assert sorted(account(store).keys) == sound
    assert verify(store, 2).ok
    assert main(["gc", config.output, "--older-than", "0"]) == 0
    assert verify(store, 2).findings == []
    assert not list((tmp_path / "cache" / "aside").rglob("*.json"))


def test_a_lost_manifest_is_made_anew_by_the_same_settings_and_by_no_others(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    """Others would cut parts at other samples, or read the old ones by another codec."""
    file = write_tar(tmp_path / "a.tar", samples(10))
    config = job_config(tiny_model, file, tmp_path / "cache")
    run_here(config, llama)
    before = load_dataset(LocalStore(tmp_path / "cache"))
    (tmp_path / "cache" / "dataset.json").unlink()
    for other in ({"method__retention": 0.5}, {"cache__part_samples": 5}, {"cache__codec": "auto"}):
        with pytest.raises(ConfigError, match=r"holds 3 parts, its dataset\.json is lost"):
            plan_job(job_config(tiny_model, file, tmp_path / "cache", **other), with_gpu=False)
        assert not (tmp_path / "cache" / "dataset.json").exists()
    assert run_here(config, llama) == []
    after = load_dataset(LocalStore(tmp_path / "cache"))
    assert (after.identity_hash, after.part_samples) == (before.identity_hash, before.part_samples)
    assert verify(LocalStore(tmp_path / "cache"), 2).ok


def test_a_deleted_record_is_told_from_a_kill_before_its_commit(
    tmp_path: Path, tiny_model: Path, llama: Replica
) -> None:
    """Also that of a shard's last part, which leaves no gap, in the smallest cache, once a run has ended."""
    config = job_config(tiny_model, write_tar(tmp_path / "a.tar", samples(10)), tmp_path / "cache")
    run_here(config, llama)
    store = LocalStore(tmp_path / "cache")
    complete_catalog(store, read_commits(store, 2), 2)
    (last,) = (tmp_path / "cache" / "commits").glob("*/*/00002.json")
    assert read_catalog(store).seal is not None
    last.unlink()
    ((name, detail),) = [(finding.object, finding.detail) for finding in verify(store, 2).findings if finding.is_damage]
    assert name == str(last.relative_to(tmp_path / "cache"))
    assert "the catalog tells that there was one" in detail
    assert [report.part for report in run_here(config, llama)] == [2]
    assert read_catalog(store).seal is None, "a run that has work to do removes the seal before it begins"
    complete_catalog(store, read_commits(store, 2), 2)
    assert verify(store, 2).ok
