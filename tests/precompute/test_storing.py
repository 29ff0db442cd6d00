"""Storing in another process stores what storing here does, and its death costs a shard's attempt, never a sample."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.corpora import sample, samples, write_tar
from tests.precompute.runs import account, job_config, make_runner, part_reports, run_here, storing_order
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.config import JobConfig, ModelConfig
from trio_ray.errors import ConfigError, StoreError
from trio_ray.model.replica import Replica
from trio_ray.precompute.host_memory import HostMemory
from trio_ray.precompute.model_stage import StoredGroup
from trio_ray.precompute.plan import JobPlan, plan_job
from trio_ray.precompute.replica_actor import ReplicaActor, ReplicaSpec
from trio_ray.precompute.shard_run import SHARDS_AT_ONCE, ShardRunner
from trio_ray.precompute.shard_writer import ShardSink
from trio_ray.precompute.storing import StoringProcesses, StoringProcessLost
from trio_ray.source.sample import BadSample, Shard
from trio_ray.store.verify import verify


class Elsewhere:
    """A runner whose shards are stored by other processes."""

    def __init__(self, config: JobConfig, replica: Replica) -> None:
        self.plan: JobPlan = plan_job(config, with_gpu=False)
        self.memory = HostMemory(pinned=False)
        self.processes = StoringProcesses(storing_order(config, self.plan), self.memory, 1)
        here = make_runner(config, replica, self.plan)
        self.runner: ShardRunner = replace(
            here, stage=replace(here.stage, memory=self.memory), open_sink=self.processes.open
        )

    def run(self, number: int) -> int:
        """Samples that a shard's run stored."""
        task = self.plan.tasks[number]
        return sum(report.stored for report in part_reports(self.runner.run(task.shard, task.committed)))

    def process_numbers(self) -> list[int]:
        return [process._child.pid for process in self.processes._idle]


@pytest.fixture
def opened() -> Iterator[list[Elsewhere]]:
    """Ends the processes of what a test puts in."""
    made: list[Elsewhere] = []
    yield made
    for elsewhere in made:
        elsewhere.processes.close()


def lasting(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what no two runs have in common: times, and the names of an attempt's files."""
    return {name: row[name] for name in row if not name.endswith(("_ms", "_tar", "_object", "_uri"))}


def config_of(tmp_path: Path, model: Path, name: str, **settings: object) -> JobConfig:
    tars = [str(tmp_path / f"{letter}.tar") for letter in "abc"]
    for number, tar in enumerate(tars):
        mixed = [*samples(9), sample(50 + number, png=b"")]
        write_tar(Path(tar), mixed)
    return job_config(model, tars, tmp_path / name, pipeline__token_budget=400, **settings)


def test_storing_yields_to_the_replica_where_cores_are_short(
    tmp_path: Path, tiny_model: Path, llama: Replica, opened: list[Elsewhere]
) -> None:
    elsewhere = Elsewhere(config_of(tmp_path, tiny_model, "cache"), llama)
    opened.append(elsewhere)
    elsewhere.run(0)
    (process,) = elsewhere.process_numbers()
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, process) > ours or ours == 19


@pytest.mark.parametrize(
    "settings", [{"cache__codec": "int4"}, {"cache__level": "embeds", "cache__targets": "top_k"}], ids=["kv", "embeds"]
)
def test_what_is_stored_is_what_is_stored_here_by_one_process_shard_after_shard(
    tmp_path: Path, tiny_model: Path, llama: Replica, opened: list[Elsewhere], settings: dict[str, str]
) -> None:
    here, there = (config_of(tmp_path, tiny_model, name, **settings) for name in ("here", "there"))
    run_here(here, llama)
    elsewhere = Elsewhere(there, llama)
    opened.append(elsewhere)
    (process,) = elsewhere.process_numbers()
    assert [elsewhere.run(number) for number in range(3)] == [9, 9, 9]
    assert elsewhere.process_numbers() == [process]
    assert verify(elsewhere.plan.store, 1).ok
    assert account(elsewhere.plan.store) == account(plan_job(here, with_gpu=False).store)
    ours, theirs = (PrunedCache(str(config.output)).rows_at(range(27)) for config in (here, there))
    assert list(map(lasting, ours)) == list(map(lasting, theirs))


def test_a_process_that_is_killed_fails_the_shard_by_name_and_the_next_one_gets_another(
    tmp_path: Path, tiny_model: Path, llama: Replica, opened: list[Elsewhere]
) -> None:
    elsewhere = Elsewhere(config_of(tmp_path, tiny_model, "cache"), llama)
    opened.append(elsewhere)
    (process,) = elsewhere.process_numbers()

    def open_and_kill(shard: Shard) -> ShardSink:
        sink = elsewhere.processes.open(shard)
        os.kill(process, signal.SIGKILL)
        return sink

    shard = elsewhere.plan.tasks[0].shard
    with pytest.raises(StoringProcessLost, match=r"cache.*-9") as caught:
        list(replace(elsewhere.runner, open_sink=open_and_kill).run(shard, frozenset()))
    assert isinstance(caught.value, StoreError)
    assert elsewhere.memory.alive == {block.number for block in elsewhere.memory._free}  # nothing is lent any more
    assert [elsewhere.run(number) for number in range(3)] == [9, 9, 9]
    assert len(account(elsewhere.plan.store).stored) == 27
    assert process not in elsewhere.process_numbers()


def test_what_the_store_refuses_is_raised_here_as_the_same_error(
    tmp_path: Path, tiny_model: Path, llama: Replica, opened: list[Elsewhere]
) -> None:
    elsewhere = Elsewhere(config_of(tmp_path, tiny_model, "cache"), llama)
    opened.append(elsewhere)
    (tmp_path / "cache" / "data").write_bytes(b"a file where a folder has to be")
    with pytest.raises(StoreError, match="data") as caught:
        elsewhere.run(0)
    assert not isinstance(caught.value, StoringProcessLost)
    (tmp_path / "cache" / "data").unlink()
    assert elsewhere.run(0) == 9  # the process lives on


def test_a_shard_that_cannot_be_given_up_costs_a_process_and_raises_nothing(
    tmp_path: Path, tiny_model: Path, llama: Replica, opened: list[Elsewhere]
) -> None:
    """The process answers with an error: it is ended and not used again, and none is left behind."""
    elsewhere = Elsewhere(config_of(tmp_path, tiny_model, "cache"), llama)
    opened.append(elsewhere)
    (process,) = elsewhere.processes._idle
    sink = elsewhere.processes.open(elsewhere.plan.tasks[0].shard)
    process.ask = lambda message: (_ for _ in ()).throw(RuntimeError(f"no answer to {message}"))  # type: ignore
    sink.abort()
    sink.abort()
    assert process._child.returncode == 0
    assert elsewhere.processes._idle == []
    assert elsewhere.run(0) == 9


def test_no_memory_stays_lent_when_a_batch_does_not_arrive(
    tmp_path: Path, tiny_model: Path, llama: Replica, opened: list[Elsewhere], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two groups of a batch fails to arrive: the blocks of both can be used again."""
    elsewhere = Elsewhere(config_of(tmp_path, tiny_model, "cache"), llama)
    opened.append(elsewhere)
    arrive, arrivals = StoredGroup.arrived, []

    def fail_the_second_time(group: StoredGroup) -> list[StoredGroup | BadSample]:
        arrivals.append(group)
        if len(arrivals) == 2:
            raise RuntimeError("CUDA error")
        return arrive(group)

    monkeypatch.setattr(StoredGroup, "arrived", fail_the_second_time)
    stage = elsewhere.runner.stage
    run = stage.run

    def run_one_by_one(prepared: Any) -> Any:
        stage.token_budget = 1  # as if the device had run out of memory since the batch was packed
        return run(prepared)

    monkeypatch.setattr(stage, "run", run_one_by_one)
    task = elsewhere.plan.tasks[0]
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(elsewhere.runner.run(task.shard, task.committed))
    assert len(arrivals) >= 2
    assert elsewhere.memory.alive == {block.number for block in elsewhere.memory._free}
    assert len(elsewhere.memory.alive) == len(elsewhere.memory._free)


def test_processes_end_with_the_replica(
    tmp_path: Path, tiny_model: Path, llama: Replica, opened: list[Elsewhere]
) -> None:
    elsewhere = Elsewhere(config_of(tmp_path, tiny_model, "cache"), llama)
    (process,) = elsewhere.processes._idle
    elsewhere.processes.open(elsewhere.plan.tasks[0].shard).abort()  # it has started
    elsewhere.processes.close()
    assert process._child.returncode == 0


def test_processes_end_when_the_model_cannot_be_loaded(tmp_path: Path, tiny_model: Path) -> None:
    """They start before the model is there, and the actor lives on until its job has heard of the failure."""
    config = config_of(tmp_path, tiny_model, "cache", pipeline__storing="process")
    plan = plan_job(config, with_gpu=False)
    gone = config.model_copy(update={"model": ModelConfig(name=str(tmp_path / "gone"))})
    actor = ReplicaActor(ReplicaSpec(gone, plan.dataset, plan.run_id))
    before = set(psutil.Process().children())
    with pytest.raises(ConfigError, match="gone"):
        actor.load()
    assert set(psutil.Process().children()) == before


def test_a_replica_on_a_cpu_can_store_in_processes(tmp_path: Path, tiny_model: Path) -> None:
    """It does so where `pipeline.storing` says it; all that was sent is in the cache."""
    config = config_of(tmp_path, tiny_model, "cache", pipeline__storing="process")
    plan = plan_job(config, with_gpu=False)
    actor = ReplicaActor(ReplicaSpec(config, plan.dataset, plan.run_id))
    before = set(psutil.Process().children())
    actor.load()
    started = set(psutil.Process().children()) - before
    assert len(started) == SHARDS_AT_ONCE
    for task in plan.tasks:
        list(actor.run(task))
    assert len(account(plan.store).stored) == 27
    for process in started:
        process.kill()
        process.wait()


def test_blocks_are_used_again_and_replaced_by_larger_ones() -> None:
    memory = HostMemory(pinned=False)
    small = memory.lease(1000)
    tensor = small.allocate((3, 5), torch.int32).fill_(7)
    assert small.allocate((2,), torch.uint8).data_ptr() - tensor.data_ptr() == 64
    small.release()
    again = memory.lease(500)
    assert again.block is small.block
    other = memory.lease(500)
    assert other.block is not again.block
    again.release()
    again.release()  # the second time nothing happens
    assert memory._free == [again.block]
    large = memory.lease(3 << 20)
    assert again.block.number not in memory.alive
    assert memory.alive == {other.block.number, large.block.number}
