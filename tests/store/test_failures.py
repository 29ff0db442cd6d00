"""The shards that a job gave up are told until they are done, whoever tells and however many there are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.store.caches import shard
from trio_ray.errors import ObjectDamaged
from trio_ray.lab.scale.requests import counted_requests
from trio_ray.store import failures
from trio_ray.store.commits import RunRecord
from trio_ray.store.failures import FailureLog, FailureRecord, read_failures
from trio_ray.store.objects import ObjectStore
from trio_ray.store.record import dump_record, load_record

RUN = RunRecord("1", "host", "2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:01.000+00:00", "0.1.0")


def failure(name: str, attempts: int = 3, second: int = 1) -> FailureRecord:
    run = replace(RUN, finished=f"2026-01-01T00:00:{second:02d}.000+00:00")
    return FailureRecord("f" * 64, shard(name), attempts, "the replica died", run)


def test_failures_of_all_runs_are_told_until_they_are_mended(store: ObjectStore) -> None:
    """The next run takes them over, the last of each shard, and is the only one that tells them from then on."""
    FailureLog(store, "first").add(failure("a"), failure("b"))
    second = FailureLog(store, "second")
    second.add(failure("b", 4, second=2))
    assert read_failures(store) == {"a": failure("a"), "b": failure("b", 4, second=2)}
    second.take_over(lambda one: one.shard.name == "a")
    assert [info.name for info in store.list("failures/")] == ["failures/second.json"]
    assert read_failures(store) == {"b": failure("b", 4, second=2)}
    second.take_over(lambda one: True)
    assert read_failures(store) == {}
    assert list(store.list("failures/")) == []


def test_thousands_of_failures_are_few_requests(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come while a run works are written now and then, and all of them at its end."""
    log = FailureLog(store, "run")
    with counted_requests() as requests:
        log.add(*(failure(f"lost-{number}") for number in range(1000)))
        for number in range(1000):
            log.add(failure(f"late-{number}"))
        assert len(read_failures(store)) == 1000
        log.write()
        assert len(read_failures(store)) == 2000
    assert (requests.writes, requests.gets) == (2, 2)
    monkeypatch.setattr(failures, "WRITE_S", 0.0)
    log.add(failure("one"))
    assert len(read_failures(store)) == 2001


def test_a_record_that_is_not_as_written_is_named(store: ObjectStore) -> None:
    FailureLog(store, "run").add(failure("a"))
    fields = load_record(store.read("failures/run.json"), "")
    for damaged in (b"{}", dump_record({**fields, "failures": [{}]}), dump_record({**fields, "colour": "red"})):
        store.put("failures/run.json", damaged)
        with pytest.raises(ObjectDamaged, match=r"failures/run\.json"):
            read_failures(store)
