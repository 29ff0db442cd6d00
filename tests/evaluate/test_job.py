"""An evaluation refuses what it cannot answer from before anything is loaded. (Whole jobs: tests/jobs.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.precompute.runs import job_config, run_here
from trio_ray.cli import main
from trio_ray.config import ModelConfig
from trio_ray.errors import ConfigError
from trio_ray.evaluate.config import EvaluateConfig
from trio_ray.evaluate.job import run_evaluation
from trio_ray.model.replica import Replica


@pytest.mark.parametrize(("level", "instead"), [("embeds", "jobs/distill.py"), ("indices", "prefilling their input")])
def test_a_cache_of_another_level_is_refused_once_and_not_question_by_question(
    level: str,
    instead: str,
    model_folders: dict[str, Path],
    llama: Replica,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Even where bad prefixes may be skipped; the one line names the cache and says what to do."""
    job = job_config(
        model_folders["llama"], write_tar(tmp_path / "a.tar", samples(2)), tmp_path / "cache", cache__level=level
    )
    run_here(job, llama)
    options = ["evaluate", "--cache", job.output, "--output", str(tmp_path / "out"), "--set", "on_missing=skip"]
    assert main([*options, "--set", f"model.name={model_folders['llama']}"]) == 2
    (line,) = (shown for shown in capsys.readouterr().err.splitlines() if shown != "checking")
    assert line.startswith(f"trio-ray: cache: {job.output} stores {level}, ")
    assert "with cache.level: kv" in line
    assert instead in line
    assert not (tmp_path / "out").exists()


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
