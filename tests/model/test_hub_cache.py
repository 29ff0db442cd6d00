"""A cache made with a model of the hub: its revision is resolved to a commit once, the manifest names the commit, and
whoever reads the cache loads that one, wherever the branch has moved to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpora import samples, write_tar
from tests.model.hub_server import COMMITS, hub_server
from tests.precompute.ray_cluster import REPOSITORY
from trio_ray.store.dataset import load_dataset
from trio_ray.store.local import LocalStore

pytestmark = pytest.mark.slow

MAKE = """
import sys
from tests.precompute.runs import job_config, make_runner, part_reports
from trio_ray.model.replica import Replica
from trio_ray.precompute.plan import plan_job
config = job_config("owner/model", sys.argv[1], sys.argv[2])
plan = plan_job(config, with_gpu=False)
replica = Replica.load(plan.model, config.prompt)
runner = make_runner(config, replica, plan)
print(sum(part.stored for task in plan.tasks for part in part_reports(runner.run(task.shard, task.committed))))
"""
GENERATE = """
import json, sys
from trio_ray.cli import main
for options in json.loads(sys.argv[2]):
    print("exit code", main(["generate", "--json", "--limit", "2", sys.argv[1], *options]), flush=True)
"""


def run(home: Path, endpoint: str, *arguments: str) -> tuple[str, str]:
    """Run Python in a process of its own, as the hub client reads its environment when it is imported. Returns its
    stdout and stderr.
    """
    given = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env={**os.environ, **given}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_a_hub_model_without_a_revision_is_one_commit_for_all_who_use_the_cache(
    standins: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, later = COMMITS["main"], "3" * 40
    repository = {commit: standins["72b"]}
    home, cache, corpus = tmp_path / "home", tmp_path / "cache", write_tar(tmp_path / "a.tar", samples(4))
    with hub_server({"owner/model": repository}) as (endpoint, asked):
        made, _ = run(home, endpoint, "-c", MAKE, str(corpus), str(cache))
        assert made.split()[-1] == "4"
        weights = [path for path in asked if path.endswith("-of-00002.safetensors")]
        assert {path.split("/resolve/")[1].split("/")[0] for path in weights} == {commit}
        manifest = load_dataset(LocalStore(cache))
        assert (manifest.model_name, manifest.model_commit) == ("owner/model", commit)

        monkeypatch.setitem(COMMITS, "main", later)
        repository[later] = standins["34b"]
        asked.clear()
        shown, _ = run(home, endpoint, "-c", GENERATE, str(cache), '[[], ["--model", "owner/model"]]')
        lines = shown.splitlines()
        assert len([json.loads(line) for line in lines[:2]]) == 2
        assert lines[2:] == ["exit code 0", *lines[:2], "exit code 0"]
        assert not [path for path in asked if later in path], "the cache's commit is taken, wherever the branch is"
        shown, said = run(home, endpoint, "-c", GENERATE, str(cache), '[["--revision", "main"]]')
        assert shown == "exit code 3\n"
        assert "made with model." in said
