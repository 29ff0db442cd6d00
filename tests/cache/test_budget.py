"""Reading ahead stays within its bytes, and never waits for ever."""

from __future__ import annotations

import threading

from trio_ray.cache.budget import ByteBudget


def in_thread(budget: ByteBudget, size: int) -> tuple[threading.Thread, list[bool]]:
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(budget.take(size)))
    thread.start()
    return thread, result


def test_what_does_not_fit_waits_until_enough_is_given_back() -> None:
    budget = ByteBudget(100)
    assert budget.take(60)
    thread, result = in_thread(budget, 50)
    thread.join(0.1)
    assert thread.is_alive()
    budget.give(60)
    thread.join(5)
    assert result == [True]


def test_one_larger_than_the_whole_budget_goes_alone() -> None:
    budget = ByteBudget(100)
    assert budget.take(500)
    thread, result = in_thread(budget, 1)
    thread.join(0.1)
    assert thread.is_alive()
    budget.give(500)
    thread.join(5)
    assert result == [True]


def test_closing_lets_those_go_who_wait() -> None:
    budget = ByteBudget(100)
    assert budget.take(100)
    thread, result = in_thread(budget, 1)
    budget.close()
    thread.join(5)
    assert result == [False]
