"""A pool of a thousand actors: bad hosts cost time and never the job, while enough good ones are left."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.cluster.simulated_ray import Hosts, SimulatedRay
from trio_ray.cluster import actors, hosts, pool
from trio_ray.cluster.events import ActorReady, PoolEvent, WorkDone, WorkFailed
from trio_ray.config import ReplicasConfig
from trio_ray.errors import JobFailed

pytestmark = pytest.mark.slow

SETTINGS = ReplicasConfig(min=1, max=1000, gpus=1, cpus=1, start_timeout_s=600, silence_limit_s=900)


def run(cluster: SimulatedRay, work: int, monkeypatch: pytest.MonkeyPatch, **settings: int) -> list[PoolEvent[int]]:
    """All events of a pool of so many pieces of work on this cluster."""
    for module in (pool, hosts, actors):
        monkeypatch.setattr(module, "ray", cluster)
    for module in (pool, hosts):
        monkeypatch.setattr(module, "time", cluster)
    return list(pool.ActorPool[int](cluster, SETTINGS.model_copy(update=settings)).run(range(work)))


def test_five_in_a_hundred_hosts_are_bad_and_actors_die_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """All work is done, each piece counts once, bad hosts are left alone, and the driver has time to spare."""
    cluster = SimulatedRay(Hosts(hosts=250, actors_each=4, bad=13, deaths_an_hour=0.01))
    began = time.process_time()
    events = run(cluster, 1200, monkeypatch)
    spent = time.process_time() - began
    done = Counter(event.work for event in events if isinstance(event, WorkDone))
    assert done == Counter(range(1200))
    assert not [event for event in events if isinstance(event, WorkFailed)]
    assert sum(isinstance(event, ActorReady) for event in events) >= 948
    assert cluster.started < 1000 + 13 * 4 * 3 + 100
    assert spent < 0.2 * cluster.now, "the driver takes a small part of one core"


def test_a_few_good_hosts_among_very_many_bad_ones_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimulatedRay(Hosts(hosts=60, actors_each=4, bad=55))
    events = run(cluster, 100, monkeypatch, min=20)
    assert sum(isinstance(event, WorkDone) for event in events) == 100


def test_it_gives_up_where_the_least_number_of_actors_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimulatedRay(Hosts(hosts=60, actors_each=4, bad=55))
    with pytest.raises(JobFailed, match="20 of at least 21 replicas"):
        run(cluster, 200, monkeypatch, min=21)
    with pytest.raises(JobFailed, match="fail to start on every host"):
        run(SimulatedRay(Hosts(hosts=60, actors_each=4, bad=60)), 100, monkeypatch)
