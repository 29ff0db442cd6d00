"""`trio-ray distill` and `jobs/distill.py` as people run them: on Ray, from a cache on S3."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ray.util.state import list_actors
from safetensors.torch import load

from tests.corpora import samples, write_tar
from tests.precompute.ray_cluster import REPOSITORY, SmallCluster, small_cluster
from tests.precompute.runs import job_config, run_here
from tests.seaweed import S3Server
from trio_ray.cli import main
from trio_ray.cluster.progress import NoProgress
from trio_ray.config import JobConfig, ModelConfig, S3Config, load_section, parse_section
from trio_ray.distill.config import DistillConfig
from trio_ray.distill.job import plan_distillation, run_distillation
from trio_ray.distill.worker import Worker
from trio_ray.errors import JobFailed
from trio_ray.model.replica import Replica
from trio_ray.store.opening import open_store

pytestmark = pytest.mark.slow

COUNT = 12
STEPS = 200
"""Of a training whose workers are killed; most of them come after both kills on a fast machine, too."""


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallCluster]:
    """One cluster for all tests here, whose processes reach the S3 server."""
    with small_cluster(s3_server, tmp_path_factory.mktemp("ray")) as running:
        yield running


@pytest.fixture(scope="module")
def job(
    cluster: SmallCluster,
    model_folders: dict[str, Path],
    replicas: dict[str, Replica],
    tmp_path_factory: pytest.TempPathFactory,
    s3_server: S3Server,
) -> JobConfig:
    """A precompute job that has run into an embeds cache on S3."""
    corpus = write_tar(tmp_path_factory.mktemp("corpus") / "a.tar", samples(COUNT))
    settings = {"cache__level": "embeds", "cache__targets": "top_k"}
    config = job_config(model_folders["llama"], corpus, s3_server.fresh_uri(), **settings)
    run_here(config, replicas["llama"])
    return config


def settings_of(job: JobConfig, output: str, **sections: Any) -> dict[str, Any]:
    """A small distillation whose every step sees all samples."""
    return {
        "cache": job.output,
        "output": output,
        "teacher": {"name": job.model.name},
        "student": {"layers": 2},
        "training": {"steps": 8, "batch_size": COUNT, "warmup_steps": 1, "checkpoint_every": 3},
        **sections,
    }


def stored(uri: str, name: str) -> bytes:
    return open_store(uri, S3Config()).read(name)


def test_the_shipped_configuration_is_valid() -> None:
    config = load_section(DistillConfig, REPOSITORY / "jobs" / "distill.yaml")
    assert config.cache.startswith("s3://")
    assert config.replicas.max == 4


def test_a_submitted_job_trains_a_student_that_can_be_loaded(
    cluster: SmallCluster, job: JobConfig, s3_server: S3Server, tmp_path: Path
) -> None:
    """From S3 to S3; the student answers the test cache's questions."""
    output = s3_server.fresh_uri()
    settings = settings_of(job, output, test={"cache": job.output, "max_new_tokens": 8})
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(settings))
    submitted = cluster.submit("distill.py", "--config", str(tmp_path / "distill.yaml"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "2 layers" in submitted.stdout
    assert "accuracy" in submitted.stdout

    metrics = json.loads(stored(output, "metrics.json"))
    assert metrics["steps"] == {"all": 8, "this_run": 8}
    assert metrics["test"]["questions"] == 9
    store = open_store(output, S3Config())
    folder = tmp_path / "student"
    folder.mkdir()
    for info in store.list("student/"):
        (folder / Path(info.name).name).write_bytes(store.read(info.name))
    replica = Replica.load(ModelConfig(name=str(folder), dtype="float32"))
    assert replica.decoder.depth == 2


def test_two_workers_take_the_steps_that_one_takes(cluster: SmallCluster, job: JobConfig, s3_server: S3Server) -> None:
    """Their gradients add up to that of all samples: the weights are the same but for the order of sums."""
    cluster.wait_until_idle()
    together, alone = s3_server.fresh_uri(), s3_server.fresh_uri()
    metrics = run_distillation(parse_section(DistillConfig, settings_of(job, together, replicas={"max": 2})))
    assert metrics["workers"] == 2
    Worker(plan_distillation(parse_section(DistillConfig, settings_of(job, alone))), torch.device("cpu")).run()
    found, expected = (load(stored(uri, "checkpoint.safetensors")) for uri in (together, alone))
    assert found.keys() == expected.keys()
    for name in (name for name in found if name.startswith("weight/")):
        torch.testing.assert_close(found[name], expected[name], atol=2e-4, rtol=0)


def test_a_dead_worker_ends_the_attempt_and_the_next_one_goes_on_from_the_checkpoint(
    cluster: SmallCluster, job: JobConfig, s3_server: S3Server
) -> None:
    """Whoever of the two dies, the other does not wait for ever. The first death costs an attempt of the job, and the
    second ends it; then the same command goes on.
    """
    cluster.wait_until_idle()
    training = {"steps": STEPS, "batch_size": COUNT, "checkpoint_every": 5}
    replicas = {"max": 2, "attempts": 2}
    config = parse_section(DistillConfig, settings_of(job, s3_server.fresh_uri(), replicas=replicas, training=training))

    class KillTwo(NoProgress):
        """Kills the last worker, and in the next attempt the first one, each some steps behind a checkpoint."""

        def __init__(self) -> None:
            self.killed_at: list[int] = []
            self.said: list[str] = []

        def update(self, counts: Mapping[str, int], note: str = "", share: float | None = None) -> None:
            if len(self.killed_at) < 2 and counts["steps"] > 10 + sum(self.killed_at):
                alive = [("class_name", "=", "WorkerActor"), ("state", "=", "ALIVE")]
                workers = sorted(list_actors(address=cluster.dashboard, filters=alive), key=lambda actor: actor.pid)
                self.killed_at.append(counts["steps"])
                os.kill(workers[len(self.killed_at) - 2].pid, signal.SIGKILL)

        def say(self, line: str) -> None:
            self.said.append(line)

    progress = KillTwo()
    with pytest.raises(JobFailed, match="attempt 2, the same command goes on from the last checkpoint"):
        run_distillation(config, progress)
    assert [word for word in progress.said if "start again from the last checkpoint" in word] == progress.said
    first, second = progress.killed_at
    assert second > first, "the second attempt went on behind the first one's checkpoint"
    cluster.wait_until_idle()
    metrics = run_distillation(config)
    assert metrics["steps"]["all"] == STEPS
    assert metrics["steps"]["this_run"] <= STEPS - (second - 5)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--cache", ""], 2, "cache: is missing"),
        (["--output", ""], 2, "output: is missing"),
        (["--set", "loss={truth: 0, teacher: 0}"], 2, "loss: truth and teacher are both 0"),
        (["--set", "student.layer=5"], 2, "student.layer: is not a setting"),
        (["--set", "teacher.name=bundled"], 3, "model."),
        (["--config", "/no/such.yaml"], 2, "--config: "),
        (["--set", "replicas={cpus: 64, start_timeout_s: 2}"], 4, "replicas started in 2 s; each wants 64 CPUs"),
    ],
)
def test_what_cannot_run_ends_in_one_line(
    cluster: SmallCluster,
    job: JobConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    base = ["--cache", job.output, "--output", str(tmp_path / "out"), "--set", f"teacher.name={job.model.name}"]
    assert main(["distill", *base, *options]) == code
    shown = capsys.readouterr()
    phases = ("checking", "starting workers")
    (sentence,) = (line for line in shown.err.splitlines() if line not in phases)
    assert message in sentence
