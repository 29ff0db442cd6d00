"""Prefixes of many lengths decode together as they do alone; a bad one costs no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch

from tests.evaluate.overlapping import answer_overlapping
from trio_ray.cache.fetched import Row
from trio_ray.cache.pruned_cache import PrunedCache
from trio_ray.errors import AccessRefused, StoreError, TrioRayError
from trio_ray.evaluate.config import AnsweringConfig
from trio_ray.evaluate.decode import WARM_UP_ROWS, AllRequested, Decoded, PrefixDecoder
from trio_ray.evaluate.join import Task, join, questions_of, tasks_of
from trio_ray.evaluate.question import Outcome
from trio_ray.model.decode.engine import Answer, Engine
from trio_ray.model.replica import Replica

NEW_TOKENS = 6


def stored_tasks(cache: PrunedCache) -> list[Task]:
    found, _ = join(questions_of(cache, "exact"), cache, "exact")
    return tasks_of(found)


@pytest.mark.parametrize("sequences", [1, 3, 256])
def test_batches_of_any_size_answer_as_each_prefix_alone(cache: PrunedCache, llama: Replica, sequences: int) -> None:
    tasks = stored_tasks(cache)
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
    tasks = stored_tasks(cache)
    expected = {task.number: llama.generate([cache.prefix(task.row)], 1)[0] for task in tasks}
    for task in tasks:
        Path(cache.uri, task.row["kv_object"]).unlink(missing_ok=True)
    everything = tuple(range(llama.decoder.head.weight.shape[0]))
    replica = llama if tokens == 1 else replace(llama, stop_tokens=everything)
    done = PrefixDecoder(cache, replica, AnsweringConfig(max_new_tokens=tokens)).run(tasks)
    assert done.answers == expected
    assert (done.faults, done.read_bytes) == ({}, 0)


def test_drawn_answers_do_not_depend_on_the_batch(cache: PrunedCache, llama: Replica) -> None:
    tasks = stored_tasks(cache)
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS, temperature=3.0, seed=5)
    together = PrefixDecoder(cache, llama, settings).run(tasks).answers
    alone: dict[int, str] = {}
    for task in tasks:
        alone |= PrefixDecoder(cache, llama, settings).run([task]).answers
    assert together == alone
    other = PrefixDecoder(cache, llama, settings.model_copy(update={"seed": 6})).run(tasks).answers
    assert other != together


def test_a_damaged_and_a_lost_prefix_are_faults_of_their_own(cache: PrunedCache, llama: Replica) -> None:
    tasks = stored_tasks(cache)
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
    tasks = stored_tasks(cache)
    target = Path(cache.uri, tasks[0].row["kv_object"])
    target.unlink()
    target.symlink_to(target)  # an I/O error that is neither a missing file nor a wrong byte
    with pytest.raises(Exception, match=target.name) as caught:
        PrefixDecoder(cache, llama, AnsweringConfig(max_new_tokens=2)).run(tasks)
    assert type(caught.value).__name__ == "StoreError"
    assert not isinstance(caught.value, AccessRefused)


def test_a_warm_up_answers_like_tasks_and_changes_no_later_answer(
    cache: PrunedCache, llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = []
    submit = Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, request: (submitted.append(request), submit(self, request)))
    tasks = stored_tasks(cache)
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS)
    decoder = PrefixDecoder(cache, llama, settings)
    decoder.warm_up()
    assert len(submitted) == min(WARM_UP_ROWS, len(tasks))
    assert decoder.run(tasks) == replace(PrefixDecoder(cache, llama, settings).run(tasks), waited_s=ANY, decoded_s=ANY)


def test_what_is_wrong_with_the_store_is_left_to_the_tasks_by_a_warm_up(
    cache: PrunedCache, llama: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = stored_tasks(cache)
    target = Path(cache.uri, tasks[0].row["kv_object"])
    target.unlink()
    target.symlink_to(target)
    decoder = PrefixDecoder(cache, llama, AnsweringConfig(max_new_tokens=2))
    decoder.warm_up()
    assert target.name in caplog.text
    elsewhere = [task for task in tasks if task.row["kv_object"] != tasks[0].row["kv_object"]]
    assert len(decoder.run(elsewhere).answers) == len(elsewhere) > 0


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let prefixes be restored two at a time."""
    restored = PrunedCache.restored

    def two(self: PrunedCache, rows: Iterable[Row], device: torch.device, **kwargs: Any) -> Any:
        return restored(self, rows, device, batch=2, **kwargs)

    monkeypatch.setattr(PrunedCache, "restored", two)


def break_object(cache: PrunedCache, task: Task) -> Callable[[], object]:
    """Make reading the object of a task's prefix an I/O error; what is returned makes it whole again."""
    file = Path(cache.uri, task.row["kv_object"])
    data = file.read_bytes()
    file.unlink()
    file.symlink_to(file)

    def mend() -> None:
        file.unlink()
        file.write_bytes(data)

    return mend


def test_chunks_that_overlap_are_answered_as_alone_and_the_engine_does_not_run_empty_between_them(
    cache: PrunedCache, llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = stored_tasks(cache)
    chunks = [tasks[first : first + 3] for first in range(0, len(tasks), 3)]
    assert len(chunks) > 2
    alone = [llama.generate([cache.prefix(task.row)], NEW_TOKENS)[0] for task in tasks]
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS)
    steps: list[int] = []
    step = Engine.step

    def counted(self: Engine, *under_way: int) -> list[Answer]:
        steps.append(len(self._running))
        return step(self, *under_way)

    monkeypatch.setattr(Engine, "step", counted)
    apart = [PrefixDecoder(cache, llama, settings).run(chunk) for chunk in chunks]
    drained = len(steps)
    steps.clear()
    began = time.perf_counter()
    results = answer_overlapping(PrefixDecoder(cache, llama, settings), chunks)
    seconds = time.perf_counter() - began
    answers: dict[int, str] = {}
    for result, chunk, own in zip(results, chunks, apart, strict=True):
        assert isinstance(result, Decoded)
        assert sorted(result.answers) == [task.number for task in chunk]
        assert (result.faults, result.read_bytes) == ({}, own.read_bytes)
        assert result.decoded_s > 0
        seconds -= result.decoded_s + result.waited_s
        answers |= result.answers
    assert seconds > 0, "a second counts for one chunk alone"
    assert [answers[task.number] for task in tasks] == alone
    assert len(steps) < drained
    assert min(steps[1:]) > 0, "a step began without any sequence"


def test_drawn_answers_do_not_depend_on_chunks_that_overlap(cache: PrunedCache, llama: Replica) -> None:
    tasks = stored_tasks(cache)
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS, temperature=3.0, seed=5, sequences=2)
    together = PrefixDecoder(cache, llama, settings).run(tasks).answers
    answers: dict[int, str] = {}
    for result in answer_overlapping(PrefixDecoder(cache, llama, settings), [tasks[:4], tasks[4:]]):
        assert isinstance(result, Decoded)
        answers |= result.answers
    assert answers == together


@pytest.mark.parametrize("broken", [0, 1])
def test_a_store_that_fails_costs_the_one_chunk_and_no_answer_goes_to_another(
    cache: PrunedCache, llama: Replica, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """Some of the chunk's prefixes are being decoded already when the store fails, beside those of the other chunk."""
    tasks = stored_tasks(cache)
    objects = sorted({task.row["kv_object"] for task in tasks})
    chunks = [[task for task in tasks if (task.row["kv_object"] in objects[:2]) == first] for first in (True, False)]
    last = max(chunks[broken], key=lambda task: str(task.row["kv_object"]))
    small_batches(monkeypatch)
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS, sequences=3)
    expected = [PrefixDecoder(cache, llama, settings).run(chunk).answers for chunk in chunks]
    mend = break_object(cache, last)
    decoder = PrefixDecoder(cache, llama, settings)
    results = answer_overlapping(decoder, chunks)
    failed, sound = results[broken], results[1 - broken]
    assert type(failed) is StoreError
    assert Path(last.row["kv_object"]).name in str(failed)
    assert isinstance(sound, Decoded)
    assert sound.answers == expected[1 - broken]
    mend()
    assert decoder.run(chunks[broken]).answers == expected[broken]
    assert not decoder._engine.busy


def test_a_lost_device_fails_both_chunks_and_neither_error_is_one_of_the_works_own(
    cache: PrunedCache, llama: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a pool replaces the actor, whichever of the two it hears first."""
    tasks = stored_tasks(cache)
    settings = AnsweringConfig(max_new_tokens=NEW_TOKENS)
    decoder = PrefixDecoder(cache, llama, settings)
    step, first_thread = Engine.step, threading.current_thread()

    def lost_in_the_second_thread(self: Engine, *under_way: int) -> list[Answer]:
        if threading.current_thread() is not first_thread:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return step(self, *under_way)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", lost_in_the_second_thread)
        results = answer_overlapping(decoder, [tasks[:4], tasks[4:]])
    for result in results:
        assert isinstance(result, RuntimeError)
        assert not isinstance(result, TrioRayError)
        assert "CUDA error" in str(result)
    assert decoder.run(tasks[4:]).answers == PrefixDecoder(cache, llama, settings).run(tasks[4:]).answers


def test_a_chunk_that_the_table_answers_waits_for_no_other(cache: PrunedCache, llama: Replica) -> None:
    tasks = stored_tasks(cache)
    stop = tasks[0].row["top_ids"][0]
    known = [task for task in tasks if task.row["top_ids"][0] == stop]
    others = [task for task in tasks if task.row["top_ids"][0] != stop]
    assert known
    assert others
    replica = replace(llama, stop_tokens=(stop,))
    decoder = PrefixDecoder(cache, replica, AnsweringConfig(max_new_tokens=NEW_TOKENS))
    under_way = decoder.overlapping(others)
    assert isinstance(next(under_way), AllRequested)
    (done,) = decoder.overlapping(known)  # while the other chunk has the engine
    assert isinstance(done, Decoded)
    assert sorted(done.answers) == [task.number for task in known]
    assert done.read_bytes == 0
    (rest,) = under_way
    assert isinstance(rest, Decoded)
    assert sorted(rest.answers) == [task.number for task in others]
