"""Prefixes of many lengths decode together as they do alone; a bad one costs no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trio_ray.cache.fetched import Row
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import AccessRefused, StoreError
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.decode import PrefixDecoder
from trio_ray.evaluate.join import Task, join, questions_of
from trio_ray.evaluate.question import Outcome
from trio_ray.model.replica import Replica

NEW_TOKENS = 6


def tasks_of(cache: PrunedCache) -> list[Task]:
    found, _ = join(questions_of(cache, "exact"), cache, "exact")
    return [Task(number, one.question.text, one.row) for number, one in enumerate(found)]


@pytest.mark.parametrize("sequences", [1, 3, 256])
def test_batches_of_any_size_answer_as_each_prefix_alone(cache: PrunedCache, llama: Replica, sequences: int) -> None:
    tasks = tasks_of(cache)
    assert len({cache.prefix(task.row).length for task in tasks}) > 3
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS, sequences=sequences, read_threads=3)
    done = PrefixDecoder(cache, llama, settings).run(tasks)
    alone = [llama.generate([cache.prefix(task.row)], NEW_TOKENS)[0] for task in tasks]
    assert [done.answers[task.number] for task in tasks] == alone
    assert len(set(alone)) > 2, "the answers must be able to differ"
    assert done.faults == {}
    assert done.read_bytes == sum(task.row["kv_length"] for task in tasks)
    assert done.decoded_s > 0
    assert done.waited_s >= 0


@pytest.mark.parametrize("tokens", [1, 4])
def test_answers_that_end_with_their_first_token_come_from_the_table_alone(
    cache: PrunedCache, llama: Replica, tokens: int
) -> None:
    """All stored prefixes are gone; what the table says of them is enough."""
    tasks = tasks_of(cache)
    expected = {task.number: llama.generate([cache.prefix(task.row)], 1)[0] for task in tasks}
    for task in tasks:
        Path(cache.uri, task.row["kv_object"]).unlink(missing_ok=True)
    everything = tuple(range(llama.decoder.head.weight.shape[0]))
    replica = llama if tokens == 1 else replace(llama, stop_tokens=everything)
    done = PrefixDecoder(cache, replica, AnsweringConfig(max_new_tokens=tokens)).run(tasks)
    assert done.answers == expected
    assert (done.faults, done.read_bytes) == ({}, 0)


def test_drawn_answers_do_not_depend_on_the_batch(cache: PrunedCache, llama: Replica) -> None:
    tasks = tasks_of(cache)
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS, temperature=3.0, seed=5)
    together = PrefixDecoder(cache, llama, settings).run(tasks).answers
    alone: dict[int, str] = {}
    for task in tasks:
        alone |= PrefixDecoder(cache, llama, settings).run([task]).answers
    assert together == alone
    other = PrefixDecoder(cache, llama, settings.model_copy(update={"seed": 6})).run(tasks).answers
    assert other != together


def test_a_damaged_and_a_lost_prefix_are_faults_of_their_own(cache: PrunedCache, llama: Replica) -> None:
    tasks = tasks_of(cache)
    alone = {task.number: llama.generate([cache.prefix(task.row)], NEW_TOKENS)[0] for task in tasks}
    damaged, lost = tasks[1], tasks[-1]
    file = Path(cache.uri, damaged.row["kv_object"])
    data = bytearray(file.read_bytes())
    data[damaged.row["kv_offset"] + damaged.row["kv_length"] // 2] ^= 1
    file.write_bytes(data)
    Path(cache.uri, lost.row["kv_object"]).unlink()
    gone = {task.number for task in tasks if task.row["kv_object"] == lost.row["kv_object"]}

    done = PrefixDecoder(cache, llama, AnsweringConfig(max_new_tokens=NEW_TOKENS)).run(tasks)
    assert done.faults[damaged.number].outcome is Outcome.DAMAGED
    assert repr(damaged.row["key"]) in done.faults[damaged.number].detail
    assert {number for number, fault in done.faults.items() if fault.outcome is Outcome.LOST} == gone
    assert (
        str(file.parent) in done.faults[lost.number].detail or lost.row["kv_object"] in done.faults[lost.number].detail
    )
    assert done.answers == {number: text for number, text in alone.items() if number not in gone | {damaged.number}}


def test_a_store_that_refuses_is_no_fault_of_a_question(cache: PrunedCache, llama: Replica) -> None:
    tasks = tasks_of(cache)
    target = Path(cache.uri, tasks[0].row["kv_object"])
    target.unlink()
    target.symlink_to(target)  # an I/O error that is neither a missing file nor a wrong byte
    with pytest.raises(Exception, match=target.name) as caught:
        PrefixDecoder(cache, llama, AnsweringConfig(max_new_tokens=2)).run(tasks)
    assert type(caught.value).__name__ == "StoreError"
    assert not isinstance(caught.value, AccessRefused)


def test_after_a_store_has_failed_the_next_tasks_get_their_own_answers_alone(
    cache: PrunedCache, llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch is being decoded when the second one fails."""
    tasks = tasks_of(cache)
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS, sequences=2)
    decoder = PrefixDecoder(cache, llama, settings)
    restored = PrunedCache.restored

    def failing(self: PrunedCache, rows: list[Row], *args: Any, **kwargs: Any) -> Any:
        class Broken:
            def __init__(self) -> None:
                self.batches = restored(self_, rows[:2], *args, **kwargs)

            def __next__(self) -> Any:
                batch = next(self.batches, None)
                if batch is None:
                    raise StoreError(self_.uri, "the store is gone")
                return batch

            def ready(self) -> bool:
                return True

            def close(self) -> None:
                self.batches.close()

        self_ = self
        return Broken()

    with monkeypatch.context() as patched:
        patched.setattr(PrunedCache, "restored", failing)
        with pytest.raises(StoreError, match="the store is gone"):
            decoder.run(tasks)
    done = decoder.run(tasks[4:])
    assert done.answers == PrefixDecoder(cache, llama, settings).run(tasks[4:]).answers
    assert sorted(done.answers) == [task.number for task in tasks[4:]]
