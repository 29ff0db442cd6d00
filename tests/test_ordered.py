"""Ordered work in threads: order, bounds, errors and ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from trio_ray.ordered import map_all, ordered_map


def test_results_come_in_order_whatever_finishes_first() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 5 == 0 else 0)
        return number * number

    assert list(ordered_map(slow_first, range(60), threads=8, lookahead=16)) == [number**2 for number in range(60)]


@pytest.mark.parametrize(("threads", "lookahead"), [(1, 1), (1, 8), (4, 1), (8, 2)])
def test_any_threads_and_lookahead_give_all_results(threads: int, lookahead: int) -> None:
    assert list(ordered_map(str, range(40), threads, lookahead)) == [str(number) for number in range(40)]


def test_no_items_give_no_results() -> None:
    assert list(ordered_map(str, [], 2, 2)) == []


def test_functions_run_side_by_side() -> None:
    """Four calls wait for each other: they can only pass together."""
    barrier = threading.Barrier(4, timeout=10)
    assert len(list(ordered_map(lambda number: barrier.wait(), range(8), threads=4, lookahead=8))) == 8


def test_the_reader_stays_within_the_lookahead() -> None:
    """Items drawn: those yielded, those that wait, one being handed over and one being consumed; not the
    whole input.
    """
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            drawn.append(number)
            yield number

    results = ordered_map(lambda number: number, items(), threads=2, lookahead=5)
    for _ in range(10):
        next(results)
    settle(drawn)
    assert 10 <= len(drawn) <= 10 + 5 + 2
    results.close()
    assert len(drawn) < 20


def settle(drawn: list[int]) -> None:
    """Wait until the reader no longer advances."""
    before = -1
    while len(drawn) != before:
        before = len(drawn)
        time.sleep(0.1)


def test_a_function_that_raises_does_so_in_its_turn() -> None:
    def picky(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number

    results = ordered_map(picky, range(100), threads=4, lookahead=8)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)


def test_a_reader_that_raises_does_so_after_the_results_before_it() -> None:
    def broken() -> Iterator[int]:
        yield from range(5)
        raise OSError("cut off")

    seen: list[int] = []
    with pytest.raises(OSError, match="cut off"):
        seen.extend(ordered_map(lambda number: number, broken(), threads=3, lookahead=2))
    results = ordered_map(lambda number: number, broken(), threads=3, lookahead=2)
    assert [next(results) for _ in range(5)] == list(range(5))
    results.close()


@pytest.mark.parametrize("ending", ["close", "error"])
def test_ending_early_stops_all_threads(ending: str) -> None:
    before = set(threading.enumerate())

    def work(number: int) -> int:
        if ending == "error" and number == 3:
            raise ValueError("three")
        return number

    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    results = ordered_map(work, endless(), threads=4, lookahead=4)
    next(results)
    if ending == "close":
        results.close()
    else:
        with pytest.raises(ValueError, match="three"):
            list(results)
    assert set(threading.enumerate()) <= before


def test_closing_before_the_first_result_reads_nothing() -> None:
    drawn: list[int] = []
    ordered_map(str, (drawn.append(number) for number in range(9)), 2, 2).close()
    assert drawn == []


def test_a_result_is_ready_once_it_can_be_had_at_once() -> None:
    gate = threading.Event()
    results = ordered_map(lambda number: gate.wait(10), range(2), threads=2, lookahead=2)
    assert not results.ready()
    gate.set()
    while not results.ready():
        time.sleep(0.01)
    assert next(results)
    results.close()


def test_all_of_something_is_done_in_order_and_nothing_goes_on_behind_an_error() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        if number == 1:
            raise ValueError("one")
        time.sleep(0.05)
        done.append(number)
        return -number

    with ThreadPoolExecutor(2) as pool:
        assert map_all(pool, work, [3, 2, 4]) == [-3, -2, -4]
        with pytest.raises(ValueError, match="one"):
            map_all(pool, work, [5, 1, 6, 7, 8])
        count = len(done)
        time.sleep(0.2)
        assert len(done) == count
