"""An evaluation refuses what it cannot answer from before anything is loaded. (Whole jobs: tests/jobs.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.pipeline.runs import job_config, run_here
from trio_ray.answering.config import EvaluateConfig
from trio_ray.answering.job import run_evaluation
from trio_ray.config import ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.model.replica import Replica


def test_a_cache_without_prefixes_is_refused(model_folders: dict[str, Path], llama: Replica, tmp_path: Path) -> None:
    inputs = write_tar(tmp_path / "a.tar", samples(2))
    job = job_config(model_folders["llama"], inputs, tmp_path / "cache", cache__level="indices")
    run_here(job, llama)
    model = ModelConfig(name=str(model_folders["llama"]))
    with pytest.raises(ConfigError, match=r"cache: .*stores indices, and answers need prefixes"):
        run_evaluation(EvaluateConfig(cache=job.output, output=str(tmp_path / "out"), model=model))


def test_a_file_without_questions_is_refused(made: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    config = EvaluateConfig(
        cache=str(made / "cache"),
        input=(str(tmp_path / "empty.jsonl"),),
        output=str(tmp_path / "out"),
        model=ModelConfig(name=str(model_folders["llama"])),
    )
    with pytest.raises(ConfigError, match="input: holds no question"):
        run_evaluation(config)
