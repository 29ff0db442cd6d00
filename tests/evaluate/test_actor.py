"""How the questions of an evaluation are dealt to its replicas. (What an actor does: test_decode.py and tests/jobs.)"""

from __future__ import annotations

import pytest

from trio_ray.evaluate.actor import chunks_at_once, chunks_of
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.join import Task

SETTINGS = AnsweringConfig(chunk_questions=100, sequences=40)


def sizes(tasks: int, replicas: int, settings: AnsweringConfig = SETTINGS) -> list[int]:
    """Of the chunks, which hold all tasks once and in order."""
    all_tasks = [Task(number, "?", {"key": str(number)}) for number in range(tasks)]
    chunks = chunks_of(all_tasks, settings, replicas)
    assert [task for chunk in chunks for task in chunk.tasks] == all_tasks
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    return [len(chunk.tasks) for chunk in chunks]


def test_one_replica_gets_full_chunks() -> None:
    assert sizes(250, replicas=1) == [100, 100, 50]
    assert sizes(0, replicas=1) == []


def test_several_replicas_get_smaller_chunks_at_the_end() -> None:
    found = sizes(1000, replicas=2)
    assert found[0] == 100
    assert found == sorted(found, reverse=True)
    assert found[-2] == 10
    assert found[-1] <= found[-2]


def test_few_questions_are_dealt_to_all_replicas() -> None:
    assert len(sizes(100, replicas=4)) >= 4
    assert sizes(6, replicas=2, settings=AnsweringConfig(chunk_questions=3, sequences=1)) == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("sequences", [1, 7, 256])
@pytest.mark.parametrize("questions", [20, 100, 512])
def test_the_smallest_chunks_given_at_a_time_fill_an_engine_while_others_are_fetched_and_restored(
    sequences: int, questions: int
) -> None:
    settings = AnsweringConfig(chunk_questions=questions, sequences=sequences)
    smallest = sizes(5000, 3, settings)[-2]
    assert (chunks_at_once(settings) - 2) * smallest >= sequences


def test_chunks_of_single_questions_take_no_hundreds_of_threads() -> None:
    assert chunks_at_once(AnsweringConfig(chunk_questions=1)) == 16
