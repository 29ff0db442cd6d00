"""A job with a calibrated basis: the cache holds it, every reader checks it, and any other is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.precompute.runs import job_config, run_here
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.cli import main
from trio_ray.config import JobConfig
from trio_ray.errors import ConfigError, IdentityMismatch, ObjectDamaged
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.model.replica import Replica
from trio_ray.precompute.plan import plan_job
from trio_ray.store.local import LocalStore
from trio_ray.store.verify import verify


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, scenes=5, samples_per_shard=10, broken=False, split="validation")
    return folder


@pytest.fixture(scope="module")
def basis(corpus: Path, model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made for the Llama model and the prune points of the jobs here."""
    path = tmp_path_factory.mktemp("basis") / "basis.safetensors"
    made = main(
        ["calibrate", "--input", f"{corpus}/*.tar", "--model", str(model_folders["llama"]), "--retention", "0.3",
         "--samples", "10", "--step", "0.0001", "--set", "model.dtype=float32", "--out", str(path)]
    )  # fmt: skip
    assert made == 0
    return path


def job(model: Path, corpus: Path, output: Path, basis: Path, **settings: object) -> JobConfig:
    codec = {"name": "transform", "basis": str(basis)}
    return job_config(model, f"{corpus}/*.tar", output, cache__codec=codec, **settings)


def test_the_cache_keeps_the_basis_and_reads_by_it(
    tmp_path: Path, tiny_model: Path, llama: Replica, corpus: Path, basis: Path
) -> None:
    """The file that the job named may go: its bytes lie in the cache, under their hash, as the identity has it."""
    mine = tmp_path / "basis"
    mine.write_bytes(basis.read_bytes())
    config = job(tiny_model, corpus, tmp_path / "cache", mine)
    stored = sum(report.stored for report in run_here(config, llama))
    mine.unlink()
    cache = PrunedCache(str(tmp_path / "cache"))
    digest = cache.dataset.identity["cache"]["codec"]["basis"]
    assert (tmp_path / "cache" / "codec" / f"{digest}.safetensors").read_bytes() == basis.read_bytes()
    assert len(list(cache.stream())) == stored == len(cache)
    assert verify(LocalStore(tmp_path / "cache"), 1).findings == []
    raw = job_config(tiny_model, f"{corpus}/*.tar", tmp_path / "raw", cache__codec={"name": "raw", "zstd": 0})
    run_here(raw, llama)
    sizes = [sum(PrunedCache(str(tmp_path / name)).table.column("kv_length").to_pylist()) for name in ("raw", "cache")]
    assert sizes[1] < sizes[0] / 2


def test_a_damaged_basis_is_found_and_read_by_nobody(
    tmp_path: Path, tiny_model: Path, llama: Replica, corpus: Path, basis: Path
) -> None:
    run_here(job(tiny_model, corpus, tmp_path / "cache", basis), llama)
    (stored,) = (tmp_path / "cache" / "codec").iterdir()
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    (finding,) = verify(LocalStore(tmp_path / "cache"), 1).findings
    assert (finding.kind, finding.object) == ("checksum", f"codec/{stored.name}")
    with pytest.raises(ObjectDamaged, match=stored.name):
        _ = PrunedCache(str(tmp_path / "cache")).codec


def test_a_basis_of_another_model_or_other_prune_points_is_refused_by_name(
    tmp_path: Path, tiny_model: Path, model_folders: dict[str, Path], corpus: Path, basis: Path
) -> None:
    other = job(model_folders["mistral"], corpus, tmp_path / "a", basis)
    with pytest.raises(ConfigError, match=r"cache\.codec\.basis.*(calibrated with|made for)"):
        plan_job(other, with_gpu=False)
    later = job(tiny_model, corpus, tmp_path / "b", basis, method__prune_points=[1, 4, 6])
    with pytest.raises(ConfigError, match=r"cache\.codec\.basis.*prune points"):
        plan_job(later, with_gpu=False)
    with pytest.raises(ConfigError, match=r"cache\.codec\.basis"):
        plan_job(job(tiny_model, corpus, tmp_path / "c", tmp_path / "nowhere"), with_gpu=False)
    assert not (tmp_path / "a").exists() or not any((tmp_path / "a").iterdir())


def test_another_basis_is_another_cache(
    tmp_path: Path, tiny_model: Path, llama: Replica, corpus: Path, basis: Path
) -> None:
    run_here(job(tiny_model, corpus, tmp_path / "cache", basis), llama)
    coarser = tmp_path / "coarser"
    assert main(
        ["calibrate", "--input", f"{corpus}/*.tar", "--model", str(tiny_model), "--retention", "0.3", "--samples", "10",
         "--step", "0.001", "--set", "model.dtype=float32", "--out", str(coarser)]
    ) == 0  # fmt: skip
    with pytest.raises(IdentityMismatch, match=r"cache\.codec\.basis"):
        plan_job(job(tiny_model, corpus, tmp_path / "cache", coarser), with_gpu=False)
