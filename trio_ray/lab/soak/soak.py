"""Jobs under kills and faulty requests for some minutes; afterwards every sample must be stored exactly once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trio_ray.errors import ObjectDamaged
from trio_ray.lab.s3_server import S3Server, running_server
from trio_ray.lab.scenes.corpus import write_corpus
from trio_ray.lab.soak.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy
from trio_ray.lab.soak.local_cluster import local_cluster
from trio_ray.lab.soak.saboteur import Saboteur
from trio_ray.lab.soak.settings import Soak
from trio_ray.lab.soak.small_disk import SmallDisk, small_disk
from trio_ray.store.commit_table import read_commits
from trio_ray.store.layout import FileKind
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store
from trio_ray.store.part_table import read_part_table
from trio_ray.store.verify import verify

BUCKET = "soak"
QUESTIONS = 4
NODES = 2
OUTPUTS = 2
"""There is a job for each kind of output, a folder and S3, however short the time."""
DISK_BYTES = 512 << 20
READ_THREADS = 4
ENDS_WITHIN_S = 600.0
"""A job must end so soon after the last kill."""
POLL_S = 0.2
KINDS: tuple[FileKind, ...] = ("samples", "quarantine")


def run_soak(soak: Soak, folder: Path, show: Callable[[str], None]) -> dict[str, Any]:
    """Do it; the record says what was done, and what became of the samples.

    Args:
        soak: what to do.
        folder: an empty one, for corpus, server, logs and the small disk.
        show: is told what happens.

    Raises:
        NoServer: there is no S3 server here.
        ConfigError: no small file system can be mounted, and the disk is to become full.
    """
    show("starting S3 and Ray")
    scenes = soak.shards * soak.per_shard // QUESTIONS
    corpus = write_corpus(folder / "corpus", scenes, soak.per_shard, seed=soak.seed, questions_per_image=QUESTIONS)
    with (
        running_server(_made(folder / "server"), BUCKET) as server,
        faulty_proxy(server.endpoint_url, soak.share, soak.seed) as proxy,
        _disk(soak, folder / "disk") as disk,
        _environment(server, proxy),
        local_cluster(NODES) as cluster,
    ):
        for number, shard in enumerate(corpus.shards):
            server.client().put_object(Bucket=BUCKET, Key=f"corpus/{number:05d}.tar", Body=shard.read_bytes())
        saboteur = Saboteur(cluster, disk, soak.acts, soak.silence_limit_s, soak.seed)
        jobs = _Jobs(soak, folder, server, proxy, cluster.address, saboteur, show)
        return jobs.run()


class _Jobs:
    """One job after the other until the time is over, each to its end."""

    def __init__(
        self,
        soak: Soak,
        folder: Path,
        server: S3Server,
        proxy: FaultyProxy,
        address: str,
        saboteur: Saboteur,
        show: Callable[[str], None],
    ) -> None:
        self._soak = soak
        self._folder = folder
        self._server = server
        self._proxy = proxy
        self._address = address
        self._saboteur = saboteur
        self._show = show
        self._began = 0.0
        self._next_act = 0.0
        self._acts_left = 0
        self._peace_since: float | None = None
        self._exits: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        """All jobs; the record."""
        self._began = time.monotonic()
        jobs: list[dict[str, Any]] = []
        while len(jobs) < OUTPUTS or not self._is_over():
            jobs.append(self._job(len(jobs)))
            if not jobs[-1]["ended"]:
                break
        logs = "".join(path.read_text(errors="replace") for path in self._folder.glob("*.log"))
        return {
            "seconds": time.monotonic() - self._began,
            "acts": {name: self._saboteur.done[name] for name in self._soak.acts},
            "requests": self._proxy.requests,
            "faults": {name: self._proxy.faults[name] for name in FAULTS},
            "runs": dict(self._exits),
            "survived": self._saboteur.survived,
            "tracebacks": logs.count("Traceback (most recent call last)"),
            "jobs": jobs,
        }

    def _job(self, number: int) -> dict[str, Any]:
        """Every second job writes to the small disk, if there is one."""
        local = "disk_full" in self._soak.acts and number % 2 == 0
        uri = str(self._saboteur.disk.folder / "cache") if local else f"s3://{BUCKET}/cache-{number}"
        began = time.monotonic()
        self._acts_left, self._peace_since = self._soak.acts_per_job, None
        ended = self._run_until_done(uri, number, local)
        store = open_store(uri, self._server.config)
        found = account(store, self._soak.shards, self._soak.per_shard)
        found |= {"output": "disk" if local else "s3", "seconds": time.monotonic() - began, "ended": ended}
        if ended and not found["wrong"]:
            shutil.rmtree(uri) if local else store.delete_all([info.name for info in store.list()])
        self._show(f"job {number}: {found}")
        return found

    def _run_until_done(self, uri: str, number: int, local: bool) -> bool:
        """Run the same command until it ends with 0; False if it does not in time."""
        with (self._folder / f"job-{number}.log").open("ab") as log:
            while True:
                driver = self._start(uri, log)
                try:
                    code = self._disturb(driver, local)
                finally:
                    driver.kill()
                    driver.wait()
                if code is None:
                    return False
                self._exits["killed" if code < 0 else str(code)] += 1
                if code == 0:
                    return True
                if self._must_have_ended():
                    return False

    def _disturb(self, driver: subprocess.Popen[bytes], local: bool) -> int | None:
        """Until the driver ends: its exit code; None if it does not end."""
        saboteur = self._saboteur
        while (code := driver.poll()) is None:
            time.sleep(POLL_S)
            if self._is_in_peace():
                saboteur.settle()
                if self._must_have_ended():
                    return None
            else:
                saboteur.tick()
                now = time.monotonic()
                if now >= self._next_act and (act := saboteur.act(driver, local)):
                    self._next_act = now + self._soak.interval_s
                    self._acts_left -= 1
                    self._show(f"{act} ({sum(saboteur.done.values())} in all, {self._proxy.requests} requests)")
        saboteur.tick()
        return code

    def _is_over(self) -> bool:
        """Whether the time is over and each thing happened often enough, or even the longest time is over."""
        minutes = (time.monotonic() - self._began) / 60
        least = min(self._saboteur.least(), *(self._proxy.faults[name] for name in FAULTS))
        return minutes >= self._soak.most_minutes or (minutes >= self._soak.minutes and least >= self._soak.at_least)

    def _is_in_peace(self) -> bool:
        """Whether the job was hit often enough to be left alone from now on."""
        if self._peace_since is None and (self._acts_left <= 0 or self._is_over()):
            self._peace_since = time.monotonic()
        return self._peace_since is not None

    def _must_have_ended(self) -> bool:
        return self._is_in_peace() and time.monotonic() > (self._peace_since or 0.0) + ENDS_WITHIN_S

    def _start(self, uri: str, log: Any) -> subprocess.Popen[bytes]:
        soak = self._soak
        settings = {
            "cache.codec": "int8",
            "cache.part_samples": 10,
            "pipeline.storing": "process",
            "pipeline.token_budget": 8192,
            "replicas.max": NODES,
            "replicas.silence_limit_s": soak.silence_limit_s,
            "s3.part_mib": 5,
        }
        command = [sys.executable, "-m", "trio_ray.cli", "precompute"]
        command += ["--input", f"s3://{BUCKET}/corpus/*.tar", "--output", uri]
        command += [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
        environment = {**os.environ, "RAY_ADDRESS": self._address}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def account(store: ObjectStore, shards: int, per_shard: int) -> dict[str, Any]:
    """What became of each sample, from the tables of committed parts, and what `verify` says of every byte.

    Args:
        store: of the cache.
        shards: of the input.
        per_shard: samples of each, which are numbered from 0.
    """
    seen: Counter[tuple[str, int]] = Counter()
    for commit in read_commits(store, READ_THREADS):
        for kind in KINDS:
            if kind in commit.files:
                with suppress(ObjectDamaged):  # its samples are lost, and `verify` says so
                    table = read_part_table(store, commit, kind, ["index"])
                    seen.update((commit.shard.name, index) for index in table["index"].to_pylist())
    report = verify(store, READ_THREADS)
    damage = [str(finding) for finding in report.findings if finding.is_damage]
    samples = shards * per_shard
    lost = samples - len(seen)
    doubled = seen.total() - len(seen)
    wrong = bool(lost or doubled or damage or report.incomplete)
    return {"samples": samples, "lost": lost, "doubled": doubled, "damage": damage, "wrong": wrong}


@contextmanager
def _environment(server: S3Server, proxy: FaultyProxy) -> Iterator[None]:
    """For all processes of cluster and jobs: S3 behind the proxy, and nothing of this machine's own settings."""
    ours: Mapping[str, str] = {
        **server.environment,
        "AWS_ENDPOINT_URL": proxy.endpoint_url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or whatever else this machine does would starve the replicas
    }
    before = dict(os.environ)
    os.environ.update(ours)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _disk(soak: Soak, folder: Path) -> Iterator[SmallDisk]:
    if "disk_full" not in soak.acts:
        yield SmallDisk(folder)  # which nothing fills
        return
    with small_disk(folder, DISK_BYTES) as disk:
        yield disk


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
