"""The one calibration of a benchmark: what it leaves is a basis that jobs with its model take."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from trio_ray.calibration import auto
from trio_ray.config import load_config
from trio_ray.lab.jobs import calibration as job_calibration
from trio_ray.lab.jobs import corpus as job_corpus
from trio_ray.lab.jobs.corpus import write_corpus
from trio_ray.precompute.plan import plan_job


@pytest.mark.slow
def test_the_basis_is_taken_by_a_job_and_its_measure_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auto, "MIN_SAMPLES", 8)
    monkeypatch.setattr(job_corpus, "IMAGES", 12)
    inputs = write_corpus(tmp_path / "corpus", "web", 1, 12)
    config = load_config(values={"input": inputs, "output": str(tmp_path / "store")})
    order = {"config": config.model_dump(mode="json"), "basis": str(tmp_path / "basis.safetensors")}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(order)))
    assert job_calibration.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["why"].startswith(f"transform, {found['ratio']:.1f} times smaller than 16 bit")
    assert found["divergence"] + 2 * found["uncertainty"] <= 0.003
    assert found["ratio"] > 2
    assert found["bytes_per_sample"] > 0
    cache = config.cache.model_copy(update={"codec": found["codec"]})
    plan = plan_job(config.model_copy(update={"cache": cache}), with_gpu=False)
    assert plan.codec_choice is None  # named, so nothing was left to choose
    assert plan.dataset.identity["cache"]["codec"]["name"] == "transform"
    assert len(plan.tasks) == 1
