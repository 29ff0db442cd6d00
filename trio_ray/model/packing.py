"""Consecutive samples to batches of a bounded number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from trio_ray.model.prepare import PreparedSample
from trio_ray.source.sample import BadSample

Outcome = PreparedSample | BadSample
AnyOutcome = TypeVar("AnyOutcome", PreparedSample, Outcome)


def pack(outcomes: Iterable[AnyOutcome], token_budget: int) -> Iterator[list[AnyOutcome]]:
    """Group outcomes, in order, so that the good ones of a group have at most `token_budget` rows together.

    A sample that is larger by itself makes a group alone. Bad samples ride along, at no cost.
    """
    group: list[AnyOutcome] = []
    rows = 0
    for outcome in outcomes:
        size = outcome.rows if isinstance(outcome, PreparedSample) else 0
        if rows and rows + size > token_budget:
            yield group
            group, rows = [], 0
        group.append(outcome)
        rows += size
    if group:
        yield group
