"""Prefixes of many lengths decode together as they do alone; a bad one costs no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import AccessRefused
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.decode import PrefixDecoder
from trio_ray.evaluate.join import Task, join, questions_of
from trio_ray.evaluate.question import Outcome
from trio_ray.model.replica import Replica

NEW_TOKENS = 6


def tasks_of(cache: PrunedCache) -> list[Task]:
    found, _ = join(questions_of(cache, "exact"), cache, "exact")
    return [Task(number, one.question.text, one.row) for number, one in enumerate(found)]


@pytest.mark.parametrize("batch_tokens", [1, 900, 1 << 20])
def test_batches_of_any_size_answer_as_each_prefix_alone(cache: PrunedCache, llama: Replica, batch_tokens: int) -> None:
    tasks = tasks_of(cache)
    assert len({task.row["prompt_tokens"] for task in tasks}) > 3
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS, batch_tokens=batch_tokens, read_threads=3)
    done = PrefixDecoder(cache, llama, settings).run(tasks)
    alone = [llama.generate([cache.prefix(task.row)], NEW_TOKENS)[0] for task in tasks]
    assert [done.answers[task.number] for task in tasks] == alone
    assert len(set(alone)) > 2, "the answers must be able to differ"
    assert done.faults == {}
    assert done.read_bytes == sum(task.row["kv_length"] for task in tasks)
    assert done.decoded_s > 0
    assert done.waited_s >= 0


def test_no_batch_is_above_its_budget_but_for_a_single_prefix(
    cache: PrunedCache, llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[list[int]] = []
    whole = llama.generate

    def spy(prefixes: list, max_new_tokens: int) -> list[str]:
        sizes.append([prefix.length for prefix in prefixes])
        return whole(prefixes, max_new_tokens)

    monkeypatch.setattr(llama, "generate", spy)
    tasks = tasks_of(cache)
    budget = 3 * max(task.row["prompt_tokens"] for task in tasks)
    PrefixDecoder(cache, llama, AnsweringConfig(max_new_tokens=2, batch_tokens=budget)).run(tasks)
    assert sum(len(batch) for batch in sizes) == len(tasks)
    assert all(len(batch) * max(batch) <= budget for batch in sizes)
    assert len(sizes) < len(tasks)
    smallest = min(task.row["prompt_tokens"] for task in tasks) - 1
    sizes.clear()
    PrefixDecoder(cache, llama, AnsweringConfig(max_new_tokens=2, batch_tokens=smallest)).run(tasks)
    assert [len(batch) for batch in sizes] == [1] * len(tasks)


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
