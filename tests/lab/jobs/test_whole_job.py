"""What a benchmark of whole jobs writes it deletes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.precompute.runs import job_config
from trio_ray.errors import ConfigError
from trio_ray.lab.jobs.whole_job import _check_empty


def test_an_output_that_holds_anything_is_refused_before_a_run_would_empty_it(tmp_path: Path) -> None:
    config = job_config(tmp_path, "in", tmp_path / "out" / "run0")
    _check_empty(config)
    (tmp_path / "out" / "run0").mkdir(parents=True)
    _check_empty(config)
    (tmp_path / "out" / "run0" / "somebody's.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"somebody's.txt is there already; give an --output without it"):
        _check_empty(config)
