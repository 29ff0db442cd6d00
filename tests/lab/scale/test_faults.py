"""Jobs on bad hosts and killed writers, small: nothing is lost, nothing doubled, and readers notice nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.config import S3Config
from trio_ray.lab.scale import kills, replicas
from trio_ray.lab.scale.kills import run_kills
from trio_ray.lab.scale.replicas import Load, run_replicas

pytestmark = pytest.mark.slow


def test_a_job_on_bad_hosts_whose_replicas_die_stores_every_sample_once(tmp_path: Path) -> None:
    """The driver, the pool and the commits are real; a third of the deaths are in the middle of a commit."""
    load = Load("small", part_s=60.0, deaths_an_hour=6.0, shards=12)
    found = run_replicas(str(tmp_path / "cache"), S3Config(), 40, load, seed=1)
    assert (found["samples"], found["lost"], found["doubled"], found["damage"]) == (12 * 40, 0, 0, [])
    assert (found["given_up"], found["wrong"]) == (0, False)
    assert found["deaths"] >= 3
    assert found["second_run"] == {"shards_before": 12, "parts": 0, "failed": 0}
    assert found["driver_cpu_s"] < found["simulated_s"]
    assert "| small | 40 | 3 of 10 |" in replicas.study({"jobs": [found]}).text
    again = run_replicas(str(tmp_path / "again"), S3Config(), 40, load, seed=1)
    chance = ("simulated_s", "actors", "deaths", "partitions", "parts", "events")
    assert {name: again[name] for name in chance} == {name: found[name] for name in chance}  # all chance is the seed's


def test_real_kills_at_any_moment_are_never_seen_by_a_reader(tmp_path: Path) -> None:
    """Every confirmed part is there and its keys are found, at each opening; `verify` finds nothing behind `gc`."""
    found = run_kills(str(tmp_path / "cache"), S3Config(), kills=8, seed=4)
    assert (found["problems"], found["writers_failed"]) == ([], 0)
    assert (found["lost"], found["doubled"], found["damage"], found["left"], found["wrong"]) == (0, 0, [], [], False)
    assert found["kills"] >= 8
    assert min(found["parts"], found["openings"], found["lookups"]) > 0
    assert "0 lost, 0 doubled" in kills.study(found).text
