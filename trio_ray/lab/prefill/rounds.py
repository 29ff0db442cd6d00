"""Contestants in turn, round after round, so that whatever drifts (clocks, heat, neighbours) meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from trio_ray.lab.prefill.contestant import Contestant
from trio_ray.tensors import measure

WARM_UP_S = 15.0
"""A contestant's untimed pass ends after this long, wherever it is: what compiles has compiled by then."""


@dataclass
class Timings:
    """By contestant the seconds of each round and the most memory; `peak` the device's FLOP/s, once a round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    peak: list[float] = field(default_factory=list)


def run_rounds(
    contestants: Mapping[str, Contestant],
    rounds: int,
    device: torch.device,
    peak: Callable[[], float],
    on_pass: Callable[[str], None] = lambda what: None,
) -> Timings:
    """Warm each contestant up, then time a pass of each in every round.

    Args:
        contestants: by name, in the order in which they take turns.
        rounds: how many.
        device: waited for before and after each pass, and not within.
        peak: measures the device's own rate, once a round.
        on_pass: told what begins.
    """
    timings = Timings()
    for name, contestant in contestants.items():
        on_pass(f"warm-up: {name}")
        _warm_up(contestant, device)
    for number in range(rounds):
        timings.peak.append(peak())
        for name, contestant in contestants.items():
            on_pass(f"round {number + 1} of {rounds}: {name}")
            batches = contestant.batches(number)
            measured = measure(device, partial(_run, contestant, batches))
            timings.seconds.setdefault(name, []).append(measured.seconds)
            peaks = [bytes_ for bytes_ in (timings.peak_bytes.get(name), measured.peak_bytes) if bytes_ is not None]
            timings.peak_bytes[name] = max(peaks, default=None)
    return timings


def _run(contestant: Contestant, batches: Sequence[object]) -> None:
    for batch in batches:
        contestant.run(batch)
    contestant.finish()


def _warm_up(contestant: Contestant, device: torch.device) -> None:
    left = WARM_UP_S
    for batch in contestant.batches(-1):
        left -= measure(device, partial(contestant.run, batch)).seconds
        if left < 0:
            break
