"""A pool of a thousand actors: bad hosts cost time and never the job, while enough good ones are left."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from trio_ray.cluster.actors import ActorFactory
from trio_ray.cluster.events import ActorReady, PoolEvent, WorkDone, WorkFailed
from trio_ray.cluster.pool import ActorPool
from trio_ray.config import ReplicasConfig
from trio_ray.errors import JobFailed
from trio_ray.lab.scale.simulated_ray import Hosts, SimulatedRay, Wait

pytestmark = pytest.mark.slow

SETTINGS = ReplicasConfig(min=1, max=1000, gpus=1, cpus=1, start_timeout_s=600, silence_limit_s=900)


def three_reports(work: int, dice: random.Random) -> Generator[Any, None, None]:
    for part in range(3):
        yield Wait(dice.uniform(40, 80))
        yield f"{work} {part}"


def simulated(hosts: Hosts) -> SimulatedRay:
    return SimulatedRay(hosts, lambda actor_class, arguments: three_reports)


def run(cluster: SimulatedRay, work: int, **settings: int) -> list[PoolEvent[int]]:
    """All events of a pool of so many pieces of work on this cluster."""
    with cluster.installed():
        factory = ActorFactory(object, ())
        return list(ActorPool[int](factory, SETTINGS.model_copy(update=settings)).run(range(work)))


def test_five_in_a_hundred_hosts_are_bad_and_actors_die_now_and_then() -> None:
    """All work is done, each piece counts once, bad hosts are left alone, and the driver has time to spare."""
    cluster = simulated(Hosts(hosts=250, actors_each=4, bad=9, silent=4, deaths_an_hour=0.01))
    began = time.process_time()
    events = run(cluster, 1200)
    spent = time.process_time() - began
    done = Counter(event.work for event in events if isinstance(event, WorkDone))
    assert done == Counter(range(1200))
    assert not [event for event in events if isinstance(event, WorkFailed)]
    assert sum(isinstance(event, ActorReady) for event in events) >= 948
    assert cluster.started < 1000 + 13 * 4 * 3 + 100
    assert spent < 0.2 * cluster.now, "the driver takes a small part of one core"


def test_a_few_good_hosts_among_very_many_bad_ones_are_enough() -> None:
    cluster = simulated(Hosts(hosts=60, actors_each=4, bad=55))
    events = run(cluster, 100, min=20)
    assert sum(isinstance(event, WorkDone) for event in events) == 100


def test_it_gives_up_where_the_least_number_of_actors_cannot_be_had() -> None:
    cluster = simulated(Hosts(hosts=60, actors_each=4, bad=55))
    with pytest.raises(JobFailed, match="20 of at least 21 replicas"):
        run(cluster, 200, min=21)
    with pytest.raises(JobFailed, match="fail to start on every host"):
        run(simulated(Hosts(hosts=60, actors_each=4, bad=60)), 100)
