"""Whole jobs on real Ray and a real S3 server: whatever dies, each sample is in exactly one committed part."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.corpora import sample, samples, tar_bytes, write_tar
from tests.model.hub_server import COMMITS, hub_server
from tests.precompute.contract import assert_follows_the_contract
from tests.precompute.ray_cluster import REPOSITORY, SmallCluster, small_cluster
from tests.precompute.runs import account, job_config
from tests.seaweed import S3Server
from trio_ray.cli import main
from trio_ray.cluster import hosts
from trio_ray.cluster.events import ActorEnded, ActorLost, PoolEvent, Report
from trio_ray.cluster.progress import NoProgress
from trio_ray.config import JobConfig
from trio_ray.errors import JobFailed
from trio_ray.precompute.job import run_job
from trio_ray.precompute.plan import Task
from trio_ray.precompute.summary import JobSummary
from trio_ray.store.commit_table import read_commits
from trio_ray.store.dataset import load_dataset
from trio_ray.store.failures import read_failures
from trio_ray.store.findings import FindingKind
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store
from trio_ray.store.verify import verify

pytestmark = pytest.mark.slow

SHARDS, PER_SHARD = 6, 12
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallCluster]:
    """One cluster for all tests here: starting Ray takes longer than each of them."""
    with small_cluster(s3_server, tmp_path_factory.mktemp("ray")) as running:
        yield running


@pytest.fixture(autouse=True)
def _idle(cluster: SmallCluster) -> Iterator[None]:
    yield
    cluster.wait_until_idle()


def members_of(number: int) -> list[dict[str, object]]:
    """A shard's samples, among them a corrupt image, an empty question and a repeated key."""
    members = samples(PER_SHARD, first=100 * number)
    members[2]["png"] = b"no image"
    members[5]["json"] = {"question": ""}
    members[9]["__key__"] = members[0]["__key__"]
    return members


@pytest.fixture(scope="module")
def corpus(s3_server: S3Server) -> str:
    """The shards on S3."""
    uri = s3_server.fresh_uri()
    prefix = uri.removeprefix(f"s3://{s3_server.bucket}/")
    for number in range(SHARDS):
        body = tar_bytes(members_of(number))
        s3_server.client().put_object(Bucket=s3_server.bucket, Key=f"{prefix}/{number:05d}.tar", Body=body)
    return f"{uri}/{{00000..{SHARDS - 1:05d}}}.tar"


def s3_job(model: Path, corpus: str, output: str, replicas: int = 2) -> JobConfig:
    return job_config(model, corpus, output, cache__part_samples=3, replicas__max=replicas)


def command(config: JobConfig) -> list[str]:
    """The same job as a command line."""
    settings = {
        "model.dtype": config.model.dtype,
        "cache.part_samples": config.cache.part_samples,
        "cache.codec": config.cache.codec,
        "replicas.max": config.replicas.max,
        "replicas.attempts": config.replicas.attempts,
        "replicas.silence_limit_s": config.replicas.silence_limit_s or "null",
    }
    named = ["--output", config.output, "--model", config.model.name, "--retention", str(config.method.retention)]
    sets = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    return ["precompute", "--input", *config.input, *named, *sets]


def start_driver(config: JobConfig, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "trio_ray.cli", *command(config)],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
        )


def wait_until(true: Callable[[], bool], *drivers: subprocess.Popen[bytes]) -> None:
    """Wait for something that the drivers bring about."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert all(driver.poll() is None for driver in drivers), "a driver ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def commits_in(store: ObjectStore) -> int:
    return sum(1 for _ in store.list("commits/"))


def assert_each_sample_once(store: ObjectStore) -> None:
    """All shards of `corpus` are complete, and every sample is stored or quarantined in exactly one committed part."""
    found = account(store)
    assert len(found.stored) == SHARDS * (PER_SHARD - 3)
    assert len(found.quarantined) == SHARDS * 3
    assert set(found.reasons.values()) == {"image_corrupt", "text_empty", "duplicate_key"}
    everything = found.stored + found.quarantined
    assert len(set(everything)) == len(everything) == SHARDS * PER_SHARD
    assert {index for _, index in everything} == set(range(PER_SHARD))
    report = verify(store, 4)
    assert report.ok, report.findings
    assert report.incomplete == []


class Saboteur:
    """An observer that does something at a given number of committed parts."""

    def __init__(self, acts: dict[int, Callable[[], None]]) -> None:
        self.acts = acts
        self.lost: list[str] = []

    def note(self, event: PoolEvent[Task], summary: JobSummary) -> None:
        """See `Observer`."""
        if isinstance(event, ActorLost):
            self.lost.append(event.why)
        for parts in [parts for parts in self.acts if summary.parts >= parts]:
            self.acts.pop(parts)()


def test_the_same_command_finishes_after_driver_replica_and_node_were_killed(
    cluster: SmallCluster, corpus: str, tiny_model: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    config = s3_job(tiny_model, corpus, s3_server.fresh_uri())
    store = open_store(config.output, config.s3)
    driver = start_driver(config, tmp_path / "driver.log", RAY_ADDRESS=cluster.address)
    wait_until(lambda: commits_in(store) >= 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    cluster.wait_until_idle()  # a dead driver's replicas end too
    assert commits_in(store) < SHARDS * PER_SHARD // 3 - 8, "the job was nearly done when its driver was killed"

    saboteur = Saboteur({1: lambda: cluster.kill_replica(on_second=False), 4: cluster.lose_second_node})
    try:
        summary = run_job(config, observer=saboteur.note)
    finally:
        cluster.replace_second_node()
    assert summary.ok, summary
    assert saboteur.acts == {}
    assert len(saboteur.lost) >= 2
    assert_each_sample_once(store)

    third = run_job(config)
    assert (third.ok, third.parts, third.shards_before) == (True, 0, SHARDS)
    assert third.seconds < 10


def test_two_drivers_at_once_store_each_sample_once(
    cluster: SmallCluster, tiny_model: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    shards = [write_tar(folder / f"{number}.waits.tar", members_of(number)) for number in range(SHARDS)]
    traps = [shard.with_name(shard.name + ".armed") for shard in shards]
    for trap in traps:
        trap.touch()
    config = s3_job(tiny_model, str(folder / "*.tar"), s3_server.fresh_uri(), replicas=1)
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    drivers = [start_driver(config, log, RAY_ADDRESS=cluster.address) for log in logs]
    # Both have planned the whole job and opened their first shard; now they start together.
    wait_until(lambda: len({path.name.split(".")[-2] for path in folder.glob("*.waiting")}) == 2, *drivers)
    for trap in traps:
        trap.unlink()
    assert [driver.wait(DEADLINE_S) for driver in drivers] == [0, 0]
    store = open_store(config.output, config.s3)
    claimed = [int(count) for log in logs for count in re.findall(r"(\d+) samples stored", log.read_text())]
    assert len(claimed) == 2
    assert sum(claimed) == sum(commit.stored for commit in read_commits(store, 4))
    assert_each_sample_once(store)


def test_a_shard_that_kills_its_replica_is_given_up_and_a_silent_replica_is_killed(
    cluster: SmallCluster, tiny_model: Path, s3_server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus"
    kills = write_tar(folder / "a.kills.tar", samples(4))
    hangs = write_tar(folder / "b.hangs.tar", samples(4, first=10))
    changed = write_tar(folder / "c.tar", [*samples(4, first=20), sample(30, png=b"")])
    for trap in (kills, hangs):
        trap.with_name(trap.name + ".armed").touch()
    config = job_config(
        tiny_model, folder / "*.tar", s3_server.fresh_uri(),
        replicas__max=2, replicas__attempts=2, replicas__silence_limit_s=12,
    )  # fmt: skip
    store = open_store(config.output, config.s3)

    assert main(command(config)) == 4
    shown = capsys.readouterr()
    assert f"FAILED {kills}: given up after 2 attempts" in shown.out
    assert "it sent nothing for 12 s" in shown.err
    assert [(record.shard.uri, record.attempts) for record in read_failures(store).values()] == [(str(kills), 2)]
    found = account(store)
    assert len(found.stored) == len(set(found.stored)) == 8
    assert found.reasons == {"s0030": "image_empty"}
    assert not hangs.with_name(hangs.name + ".armed").exists()
    assert [finding.kind for finding in verify(store, 2).findings if not finding.is_damage].count(
        FindingKind.GIVEN_UP
    ) == 1
    assert main(["verify", config.output]) == 1
    assert main(["inspect", config.output, "--failed"]) == 0
    assert f"{kills}: " in capsys.readouterr().out
    assert_follows_the_contract(store)

    kills.with_name(kills.name + ".armed").unlink()
    assert main(command(config)) == 0
    assert read_failures(store) == {}
    assert len(account(store).stored) == 12
    assert verify(store, 2).incomplete == []

    write_tar(changed, samples(2, first=40))
    assert main(command(config)) == 4
    assert f"FAILED {changed}: has changed since parts of it were committed" in capsys.readouterr().out
    assert next(iter(read_failures(store).values())).error.startswith("has changed")
    assert len(account(store).stored) == 12
    assert_follows_the_contract(store)


def test_a_replica_at_which_all_work_fails_is_replaced_and_no_other_shard_pays_for_it(
    cluster: SmallCluster, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus"
    sickens = write_tar(folder / "b.sickens.tar", samples(4))
    sickens.with_name(sickens.name + ".armed").touch()
    for number, name in enumerate("acdef"):
        write_tar(folder / f"{name}.tar", samples(4, first=10 * (number + 1)))
    config = job_config(tiny_model, folder / "*.tar", tmp_path / "cache", replicas__max=1, replicas__attempts=2)
    assert main(command(config)) == 0
    assert "CUDA error" in capsys.readouterr().err
    assert len(account(open_store(config.output, config.s3)).stored) == 24


def test_without_a_cluster_ray_is_started_for_the_job_and_ended_with_it(
    cluster: SmallCluster, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its two replicas load the commit of the hub model that the driver has found, wherever the branch moves."""
    inputs = [str(write_tar(tmp_path / f"{number}.tar", samples(6, first=10 * number))) for number in range(4)]
    config = job_config(Path("owner/model"), inputs, tmp_path / "cache", replicas__max=2)
    commit, later = COMMITS["main"], "3" * 40
    hub = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    replicas: set[int] = set()
    log = tmp_path / "log"
    with hub_server({"owner/model": {commit: tiny_model, later: tiny_model}}) as (endpoint, asked):
        driver = start_driver(config, log, HF_ENDPOINT=endpoint, **hub)
        while driver.poll() is None:
            if "starting Ray" in log.read_text():
                monkeypatch.setitem(COMMITS, "main", later)
            replicas.update(pid for pid in cluster.replicas().values())
            time.sleep(0.5)
    shown = log.read_text()
    assert driver.returncode == 0, shown
    assert "24 samples stored, 0 quarantined, in 8 parts" in shown
    assert load_dataset(open_store(config.output, config.s3)).model == f"owner/model@{commit}"
    assert not [path for path in asked if later in path]
    assert re.search(r"replica [01] ready: ", shown)
    assert replicas == set(), "it joined a cluster that nobody had named"


class Recorder(NoProgress):
    """Keeps the events of a job, and the number of replicas that is shown behind each."""

    def __init__(self) -> None:
        self.events: list[PoolEvent[Task]] = []
        self.counts: list[int] = []
        self._replicas = 0

    def update(self, counts: Mapping[str, int], note: str = "", share: float | None = None) -> None:
        """See `Progress`."""
        self._replicas = counts["replicas"]

    def note(self, event: PoolEvent[Task], summary: JobSummary) -> None:
        """See `Observer`."""
        self.events.append(event)
        self.counts.append(self._replicas)


def test_a_replica_without_work_left_is_ended_and_no_longer_counted(
    cluster: SmallCluster, tiny_model: Path, tmp_path: Path
) -> None:
    """It is not lost: nothing is done again, and its place is free while the other replica goes on."""
    inputs = [write_tar(tmp_path / "long.tar", samples(400)), write_tar(tmp_path / "short.tar", samples(2))]
    config = job_config(
        tiny_model, [str(file) for file in inputs], tmp_path / "cache",
        replicas__max=2, cache__part_samples=40,
    )  # fmt: skip
    recorder = Recorder()
    assert run_job(config, recorder, recorder.note).stored == 402
    ((at, ended),) = ((at, event) for at, event in enumerate(recorder.events) if isinstance(event, ActorEnded))
    assert {event.actor for event in recorder.events[at:] if isinstance(event, Report)} == {1 - ended.actor}
    assert set(recorder.counts[at:]) == {1}
    assert [event for event in recorder.events if isinstance(event, ActorLost)] == []


def test_too_many_bad_samples_stop_the_job(
    cluster: SmallCluster, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [sample(number, png=None if number % 2 else b"broken") for number in range(150)]
    config = job_config(tiny_model, write_tar(tmp_path / "bad.tar", members), tmp_path / "cache")
    assert main(command(config)) == 4
    assert "pipeline.max_bad_fraction" in capsys.readouterr().err


def test_a_cluster_without_room_for_a_replica_is_said(cluster: SmallCluster, tiny_model: Path, tmp_path: Path) -> None:
    config = job_config(
        tiny_model, write_tar(tmp_path / "a.tar", samples(1)), tmp_path / "cache",
        replicas__cpus=64, replicas__start_timeout_s=2,
    )  # fmt: skip
    with pytest.raises(JobFailed, match=r"0 of at least 1 replicas started in 2 s; each wants 64 CPUs") as caught:
        run_job(config)
    assert "replicas.cpus" in str(caught.value)


def test_a_model_that_no_replica_can_load_ends_the_job_with_the_cause(
    cluster: SmallCluster, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a replica's own machine lacks, only the replica can find out. `tests/cluster` holds how often a host may
    fail before that counts.
    """
    monkeypatch.setattr(hosts, "HOPELESS_AFTER", 1)
    shards = [write_tar(tmp_path / f"{number}.tar", samples(1)) for number in range(3)]
    config = job_config(
        tiny_model, [str(shard) for shard in shards], tmp_path / "cache",
        replicas__max=2, model__attention="flash_attn",
    )  # fmt: skip
    with pytest.raises(JobFailed, match=r"on every host of the cluster; the last: ConfigError: model\.attention: .+"):
        run_job(config)


def test_a_submitted_job_succeeds_and_its_cache_verifies(
    cluster: SmallCluster, corpus: str, tiny_model: Path, s3_server: S3Server
) -> None:
    config = s3_job(tiny_model, corpus, s3_server.fresh_uri())
    submitted = cluster.submit("precompute.py", *command(config)[1:])
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "succeeded" in submitted.stdout
    assert_each_sample_once(open_store(config.output, config.s3))
