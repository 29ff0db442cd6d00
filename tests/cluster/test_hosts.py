"""Whose doing an actor's death was."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError

from trio_ray.cluster import hosts
from trio_ray.cluster.hosts import was_preempted

EXPECTED, UNEXPECTED, PREEMPTED, IDLE = 1, 2, 3, 4
KNOWN, UNKNOWN = RayActorError(actor_id="a"), ActorDiedError(None)


def node(alive: bool, reason: int = 0) -> dict[str, Any]:
    return {"NodeID": "n", "Alive": alive, "DeathReason": reason}


@pytest.mark.parametrize("error", [KNOWN, UNKNOWN], ids=["cause known", "cause unknown"])
@pytest.mark.parametrize(
    ("reason", "innocent"), [(EXPECTED, True), (PREEMPTED, True), (IDLE, True), (UNEXPECTED, False)]
)
def test_a_machine_that_was_ended_on_purpose_is_not_the_works_doing(
    error: RayActorError, reason: int, innocent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(False, reason)])
    assert was_preempted(error, "n") is innocent
    assert not was_preempted(error, None)
    assert not was_preempted(error, "another")


def test_a_death_on_a_machine_that_lives_is_the_works_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [node(True)])
    monkeypatch.setattr(hosts, "CAUSE_WAIT_S", 0.5)
    assert not was_preempted(KNOWN, "n")
    assert not was_preempted(UNKNOWN, "n")
    assert was_preempted(RayActorError(actor_id="a", preempted=True), "n")


def test_the_nodes_end_is_waited_for_where_the_cause_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([node(True), node(True), node(False, PREEMPTED)])
    monkeypatch.setattr(ray, "nodes", lambda: [next(told)])
    assert was_preempted(UNKNOWN, "n")
