"""One pool of actors, on real Ray with two nodes: whatever dies, all work is done once or is named as given up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.cluster.pool_actor import Job, TestActor
from trio_ray.cluster.actors import ActorFactory
from trio_ray.cluster.events import (
    ActorDownloads,
    ActorEnded,
    ActorLost,
    ActorReady,
    PoolEvent,
    Report,
    WorkDone,
    WorkFailed,
)
from trio_ray.cluster.pool import LONGEST_PAUSE_S, ActorPool, _pause_s
from trio_ray.config import ReplicasConfig
from trio_ray.errors import JobFailed

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[str]]:
    """Two nodes with room for one actor each; gives their ids."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        cluster.add_node(num_cpus=1, num_gpus=0)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield [node["NodeID"] for node in ray.nodes()]
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def _idle(nodes: list[str]) -> Iterator[None]:
    """Every test leaves the cluster free: ended actors hold nothing, frozen ones neither."""
    yield
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < len(nodes):
        assert time.monotonic() < deadline, "actors of a pool that has ended are still alive"
        time.sleep(0.1)


@dataclass
class Outcome:
    """What the events of a pool add up to."""

    done: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    failed: dict[str, tuple[int, str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    ended: int = 0

    def note(self, event: PoolEvent[Job]) -> None:
        """Add an event."""
        if isinstance(event, WorkDone):
            self.done.append(event.work.name)
        elif isinstance(event, Report):
            self.reports.append(str(event.content))
        elif isinstance(event, WorkFailed):
            self.failed[event.work.name] = (event.attempts, event.why)
        elif isinstance(event, ActorLost):
            self.lost.append(event.why)
        elif isinstance(event, ActorReady):
            self.ready.append(event.where)
        elif isinstance(event, ActorDownloads):
            self.downloads.append(str(event))
        elif isinstance(event, ActorEnded):
            self.ended += 1


def run(factory: ActorFactory, jobs: Sequence[Job], overlap: int = 1, **settings: float) -> Outcome:
    """All events of a pool that runs these jobs."""
    outcome = Outcome()
    config = ReplicasConfig.model_validate({"max": 2, **settings})
    for event in ActorPool[Job](factory, config, overlap).run(jobs):
        outcome.note(event)
    return outcome


def fine(count: int) -> list[Job]:
    return [Job(f"fine{number}") for number in range(count)]


def test_work_is_done_once_and_what_dies_freezes_sickens_or_refuses_is_tried_again(
    nodes: list[str], tmp_path: Path
) -> None:
    acts = ["kill", "freeze", "sick", "refuse"]
    jobs = [*fine(4), *(Job(act, act) for act in acts), *(Job(f"late{number}") for number in range(4))]
    outcome = run(ActorFactory(TestActor, (tmp_path,)), jobs, silence_limit_s=6)
    assert sorted(outcome.done) == sorted(job.name for job in jobs)
    assert sorted(report.split()[0] for report in outcome.reports) == sorted(outcome.done)
    assert outcome.failed == {}
    assert len(outcome.lost) == 3, outcome.lost  # after a refusal the same actor goes on
    assert any("it sent nothing for 6 s" in why for why in outcome.lost)
    assert any("CUDA error" in why for why in outcome.lost)


@pytest.mark.parametrize("act", ["kill", "refuse", "sick"])
def test_work_that_always_fails_is_given_up_after_its_attempts_and_nothing_else_is(
    nodes: list[str], tmp_path: Path, act: str
) -> None:
    outcome = run(ActorFactory(TestActor, (tmp_path,)), [Job("bad", act, once=False), *fine(5)], attempts=2)
    assert sorted(outcome.done) == [job.name for job in fine(5)]
    ((name, (attempts, why)),) = outcome.failed.items()
    assert (name, attempts) == ("bad", 2)
    assert {"kill": "its replica died", "refuse": "SlowDown", "sick": "CUDA error"}[act] in why


def test_a_refused_piece_of_work_is_not_tried_again_at_once(nodes: list[str], tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = run(ActorFactory(TestActor, (tmp_path,)), [Job("bad", "refuse", once=False)], attempts=3)
    assert outcome.failed["bad"][0] == 3
    assert time.monotonic() - started > 0.5 + 1.0  # the shortest pauses of two retries


def test_a_host_on_which_actors_cannot_start_is_avoided_and_ends_no_job(nodes: list[str], tmp_path: Path) -> None:
    factory = ActorFactory(TestActor, (tmp_path, (nodes[1],)))
    jobs = [Job(f"slow{number}", "slow") for number in range(8)]
    outcome = run(factory, jobs)
    assert len(outcome.done) == len(jobs)
    assert set(outcome.ready) == {nodes[0]}
    assert 1 <= len(outcome.lost) <= 3, outcome.lost
    assert all("the driver of this host is broken" in why for why in outcome.lost)


def test_a_host_on_which_loading_hangs_ends_no_job(nodes: list[str], tmp_path: Path) -> None:
    factory = ActorFactory(TestActor, (tmp_path, (), (nodes[1],)))
    outcome = run(factory, [Job(f"slow{number}", "slow") for number in range(6)], silence_limit_s=4)
    assert len(outcome.done) == 6
    assert set(outcome.ready) == {nodes[0]}
    assert any("while it loaded" in why for why in outcome.lost)


def test_a_download_is_told_and_is_not_taken_for_silence(nodes: list[str], tmp_path: Path) -> None:
    outcome = run(ActorFactory(TestActor, (tmp_path, (), (), 5)), fine(1), silence_limit_s=3)
    assert (outcome.done, outcome.lost) == (["fine0"], [])
    assert outcome.downloads[0] == "replica 0 downloads owner/model (2 files): 0.00 of 0.00 GB"
    assert len(outcome.downloads) >= 4


def test_the_job_ends_with_the_last_error_when_actors_start_on_no_host(nodes: list[str], tmp_path: Path) -> None:
    factory = ActorFactory(TestActor, (tmp_path, tuple(nodes)))
    with pytest.raises(JobFailed, match=r"every host of the cluster; the last: OSError: the driver of this host"):
        run(factory, fine(4))


def test_an_actor_that_asks_for_more_gets_it_before_its_work_is_done(nodes: list[str], tmp_path: Path) -> None:
    started = time.monotonic()
    factory = ActorFactory(TestActor, (tmp_path,), calls_at_once=2)
    outcome = run(factory, [Job("a", "overlap"), Job("b", "overlap")], overlap=2, max=1)
    assert sorted(outcome.done) == ["a", "b"]
    assert len({report.split()[1] for report in outcome.reports}) == 1
    assert outcome.lost == []
    assert time.monotonic() - started < 60


def test_an_actor_without_work_left_is_ended_while_the_other_goes_on(nodes: list[str], tmp_path: Path) -> None:
    outcome = run(ActorFactory(TestActor, (tmp_path,)), [Job("slow", "slow"), Job("fine")])
    assert (sorted(outcome.done), outcome.ended, outcome.lost) == (["fine", "slow"], 1, [])


def test_actors_for_which_the_cluster_has_no_room_are_named(nodes: list[str], tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"0 of at least 1 replicas started in 1 s; .* 64 CPUs .*replicas\.cpus"):
        run(ActorFactory(TestActor, (tmp_path,)), fine(1), cpus=64, start_timeout_s=1)


def test_pauses_before_a_retry_double_differ_and_end_somewhere() -> None:
    """Many replicas that a busy store has refused do not come back together."""
    pauses = {failures: [_pause_s(failures) for _ in range(50)] for failures in (1, 3, 20)}
    assert all(len(set(drawn)) > 40 for drawn in pauses.values())
    assert 0.5 <= min(pauses[1]) < max(pauses[1]) <= 1.5
    assert 2 <= min(pauses[3]) < max(pauses[3]) <= 6
    assert max(pauses[20]) <= 1.5 * LONGEST_PAUSE_S
