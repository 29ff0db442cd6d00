"""A pool of a thousand actors: bad hosts cost time and never the job, while enough good ones are left."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from trio_ray.cluster.actors import ActorFactory
from trio_ray.cluster.events import ActorLost, ActorReady, PoolEvent, WorkDone, WorkFailed
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


def run(cluster: SimulatedRay, work: int, parts_count: bool = False, **settings: int) -> list[PoolEvent[int]]:
    """All events of a pool of so many pieces of work on this cluster."""
    with cluster.installed():
        pool = ActorPool[int](
            ActorFactory(object, ()), SETTINGS.model_copy(update=settings), is_progress=lambda report: parts_count
        )
        return list(pool.run(range(work)))


def test_five_in_a_hundred_hosts_are_bad_and_actors_die_now_and_then() -> None:
    """All work is done, each piece counts once, bad hosts are left alone, and the driver has time to spare."""
    cluster = simulated(Hosts(hosts=250, actors_each=4, bad=13, deaths_an_hour=0.01))
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


def test_little_work_is_done_although_the_first_hosts_are_silent() -> None:
    """Each costs the silence limit once, as long as a start may take in all, and is not tried again."""
    events = run(simulated(Hosts(hosts=5, actors_each=1, silent=3)), 1, silence_limit_s=600)
    assert sum(isinstance(event, WorkDone) for event in events) == 1


def test_a_sick_host_does_not_use_up_the_attempts_of_work() -> None:
    """Its actors fail at once and are free again, so that work comes back to it."""
    events = run(simulated(Hosts(hosts=3, actors_each=1, sick=1)), 2, attempts=2)
    assert sum(isinstance(event, WorkDone) for event in events) == 2


def test_work_that_gets_on_at_each_attempt_is_not_given_up() -> None:
    """Where an actor hardly ever lives to the end of its work, but commits parts of it, the work is not to blame."""
    done: Counter[int] = Counter()

    def twelve_parts(work: int, dice: random.Random) -> Generator[Any, None, None]:
        while done[work] < 12:
            yield Wait(60)
            done[work] += 1
            yield "a part"

    hosts = Hosts(hosts=10, actors_each=4, deaths_an_hour=20)
    events = run(SimulatedRay(hosts, lambda actor_class, arguments: twelve_parts), 20, parts_count=True, attempts=10)
    assert not any(isinstance(event, WorkFailed) for event in events)
    assert sum(isinstance(event, ActorLost) for event in events) > 20
    done.clear()
    events = run(SimulatedRay(hosts, lambda actor_class, arguments: twelve_parts), 20, attempts=1)
    assert any(isinstance(event, WorkFailed) for event in events)
