"""What an evaluation's events say of its speed, on made-up events whose rates are known."""

from __future__ import annotations

import pytest

from trio_ray.cluster.events import ActorLost, ActorReady, PoolEvent, Report, WorkDone
from trio_ray.errors import JobFailed
from trio_ray.evaluate.actor import Chunk
from trio_ray.evaluate.decode import Decoded
from trio_ray.lab.jobs.evaluation import EvaluationWatch, study

CHUNK = Chunk(0, ())


def report(actor: int, answers: int) -> Report[Chunk]:
    """Of a chunk that is done."""
    return Report(actor, CHUNK, Decoded(dict.fromkeys(range(answers), "yes")))


def watch_of(*events: tuple[float, PoolEvent[Chunk]]) -> EvaluationWatch:
    return EvaluationWatch(list(events))


def test_each_replicas_time_begins_when_it_is_ready_and_ends_with_the_last_answer() -> None:
    """The second loads longer, and has nothing left to do at the end: two replicas for 8 and 6 seconds."""
    watch = watch_of(
        (2.0, ActorReady(0, "cpu")), (4.0, ActorReady(1, "cpu")), (7.0, report(1, 30)), (10.0, report(0, 40)),
        (11.0, WorkDone(0, CHUNK)),
    )  # fmt: skip
    found = watch.summary(2)
    assert found["answers_per_s"] == pytest.approx(2 * 70 / 14)
    assert (found["answers"], found["all_ready_s"], found["last_answer_s"]) == (70, 4, 10)


def test_a_lost_replica_spoils_the_measurement() -> None:
    watch = watch_of((2.0, ActorReady(0, "cpu")), (3.0, ActorLost(0, "it ran out of memory")), (9.0, report(1, 3)))
    with pytest.raises(JobFailed, match="it ran out of memory"):
        watch.summary(1)


def test_shares_are_of_the_bare_engine_in_the_same_round() -> None:
    """A machine that others use is fast in one round and slow in the next."""
    rounds = [
        {
            "bare": {"answers_per_s": [8.0 * speed, 10.0 * speed], "load_s": 1.0},
            "runs": [
                {"replicas": replicas, "answers": 5, "answers_per_s": replicas * 9.0 * speed, "all_ready_s": 1.0,
                 "last_answer_s": 2.0, "whole_s": 3.0}
                for replicas in (1, 2)
            ],
        }
        for speed in (1, 3, 7)
    ]  # fmt: skip
    record = {
        "date": "2026-11-30T00:00:00", "machine": {"device": "cpu", "cpus": 2}, "shapes": "tiny", "workload": "pope",
        "answering": {"max_new_tokens": 16}, "rounds": rounds,
    }  # fmt: skip
    text = study(record).text
    assert "Bare engine: 24.0 answers/s in its first pass, 30.0 in a later one" in text
    assert "| 1 | 5 | 27.0 | 112.5 % | 90.0 % | 1.0 | 2.0 | 3.0 |" in text
    assert "| 2 | 5 | 54.0 | 112.5 % | 90.0 % | 1.0 | 2.0 | 3.0 |" in text
    unfinished = {**record, "rounds": [rounds[0], {**rounds[1], "runs": rounds[1]["runs"][:1]}]}
    assert "; 1 rounds." in study(unfinished).text
