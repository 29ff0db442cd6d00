"""A short soak: real jobs, real kills, a real S3 server behind a faulty proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cache.caches import CODEC, key_of, prefix_of, write_cache
from tests.kv.prefixes import codec_of, contained
from tests.store.caches import row
from trio_ray.config import S3Config
from trio_ray.errors import ConfigError
from trio_ray.lab.soak.report import study, what_is_wrong
from trio_ray.lab.soak.settings import ACTS, Soak
from trio_ray.lab.soak.small_disk import small_disk
from trio_ray.lab.soak.soak import account, run_soak
from trio_ray.store.commit_table import read_commits
from trio_ray.store.dataset import load_dataset
from trio_ray.store.opening import open_store
from trio_ray.store.parts import PartWriter


def may_mount(folder: Path) -> bool:
    """Whether a small file system can be had here, to fill it up."""
    try:
        with small_disk(folder, 1 << 20):
            return True
    except ConfigError:
        return False


@pytest.mark.slow
def test_nothing_is_lost_or_stored_twice_whatever_dies(tmp_path: Path) -> None:
    """Driver, replica, storing process and node are killed, a replica is stopped, the disk is full, S3 fails."""
    acts = ACTS if may_mount(tmp_path / "probe") else tuple(act for act in ACTS if act != "disk_full")
    soak = Soak(0.4, 0.4, seed=1, interval_s=6, silence_limit_s=40, shards=2, per_shard=12, acts=acts)
    record = run_soak(soak, tmp_path, lambda what: None)
    assert what_is_wrong(record, at_least=0) == [], study(record).text
    assert sum(record["acts"].values()) >= 1, record["acts"]
    assert record["faults"]["503"] + record["faults"]["500"] + record["faults"]["reset_after"] > 0
    assert {job["output"] for job in record["jobs"]} >= {"s3"}
    assert "**0 lost, 0 doubled**" in study(record).text


def test_a_lost_and_a_doubled_sample_are_counted(tmp_path: Path) -> None:
    """The account can fail: a part's record is taken away, then samples of another part are committed once more."""
    write_cache(tmp_path, [[2, 2]])  # and one sample of each part in quarantine
    store = open_store(str(tmp_path), S3Config())
    whole = account(store, shards=1, per_shard=6)
    assert (whole["lost"], whole["doubled"], whole["wrong"]) == (0, 0, False)
    last = max(info.name for info in store.list("commits/"))
    store.delete(last)
    lacking = account(store, shards=1, per_shard=6)
    assert (lacking["lost"], lacking["doubled"], lacking["wrong"]) == (3, 0, True)
    again = PartWriter(store, load_dataset(store), read_commits(store, 1)[0].shard, 1, "run-2")
    key = key_of(0, 0)
    again.add(row(key, 0), contained(prefix_of(key), codec_of(CODEC), key, load_dataset(store).identity_hash))
    assert again.commit(last=True)
    twice = account(store, shards=1, per_shard=6)
    assert (twice["lost"], twice["doubled"], twice["wrong"]) == (3, 1, True)


def test_what_happened_too_rarely_is_said() -> None:
    record = {
        "jobs": [{"output": "s3", "lost": 1, "doubled": 0, "damage": [], "wrong": True, "ended": True}],
        "survived": 1,
        "tracebacks": 2,
        "acts": {"driver": 3},
        "faults": {"503": 30},
    }
    assert what_is_wrong(record, 20) == [
        "job 0 (s3): 1 lost, 0 doubled, 0 damaged",
        "1 stopped replicas were not ended by replicas.silence_limit_s",
        "2 tracebacks were shown to the user",
        "happened less than 20 times: driver killed 3; give more --most-minutes",
    ]


def test_a_full_disk_is_a_real_one_and_has_room_again(tmp_path: Path) -> None:
    if not may_mount(tmp_path / "probe"):
        pytest.skip("no file system can be mounted here")
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "part").write_bytes(bytes(5000))
        disk.free()
        (disk.folder / "part").write_bytes(bytes(5000))
